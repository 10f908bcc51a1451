"""Every method on every kind of stream, with every kind of head: it trains, and ACC is there."""

import math
from functools import lru_cache

import numpy as np
import pytest
from avalanche.models import IncrementalClassifier, MultiHeadClassifier, MultiTaskModule
from torch import nn

from avalanche_mgem.experiment import METHODS, MLPFactory, Training, find_method
from avalanche_mgem.experiment.checks import check_runs
from avalanche_mgem.experiment.configuration import RunSpecification
from avalanche_mgem.experiment.run import run
from avalanche_mgem.streams import (
    ArrayData,
    domains_stream,
    load_data,
    permuted_stream,
    rotated_stream,
    split_stream,
)

pytestmark = [
    # Avalanche's synaptic intelligence passes tensors to NumPy's functions.
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
    # Its EWC indexes a grown parameter with a list of slices.
    pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning"),
]


def domains(data, **arguments):
    """Three domains that are shades of one data set."""
    shades = [
        ArrayData(f"shade{i}", data.x_train * w, data.y_train, data.x_test * w, data.y_test)
        for i, w in enumerate((1.0, 0.5, 0.2))
    ]
    return domains_stream(shades, image_size=8, **arguments)


KINDS = {
    "permuted": permuted_stream,
    "rotated": rotated_stream,
    "split": split_stream,
    "domains": domains,
}
T = 3
TRAINING = Training(memory=16, batch_size=10)


def growing(sample_shape, n_classes):
    size = math.prod(sample_shape)
    return nn.Sequential(nn.Flatten(), nn.Linear(size, 16), nn.ReLU(), IncrementalClassifier(16, 2))


class MultiHead(MultiTaskModule):
    """A layer that the tasks share, and a head for each."""

    def __init__(self, sample_shape, n_classes):
        super().__init__()
        size = math.prod(sample_shape)
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(size, 16), nn.ReLU())
        self.heads = MultiHeadClassifier(16)

    def forward(self, x, task_labels):
        return self.heads(self.features(x), task_labels)


MODELS = {"fixed": MLPFactory((16,)), "growing": growing, "multi-head": MultiHead}


@lru_cache
def stream(kind, task_labels):
    scenario = KINDS[kind](
        load_data("digits"),
        n_experiences=T,
        train_per_experience=40,
        test_per_experience=30,
        task_labels=task_labels,
    )
    return lambda seed: scenario


# MIGU's other scores change nothing that the head or the stream would; adapters are for text.
NAMES = [name for name in METHODS if "lora" not in name and not name.startswith("migu-")]
NAMES += ["migu-update", "replay+migu", "mgem-d+migu"]

# A head a task without labels is one head, and fixed heads with labels are renumbered classes.
CASES = [
    (name, kind, head, labels)
    for name in NAMES
    for kind in KINDS
    for head, labels in (("fixed", False), ("growing", False), ("multi-head", True))
]
CASES += [(name, "split", "fixed", True) for name in NAMES]
CASES += [(name, "split", "multi-head", False) for name in NAMES]


@pytest.mark.cover
@pytest.mark.parametrize(("name", "kind", "head", "labels"), CASES)
def test_every_method_runs_on_every_stream(name, kind, head, labels):
    method = find_method(name)
    specification = RunSpecification(method, stream(kind, labels), 0, MODELS[head], TRAINING)
    check_runs([specification])
    result = run(specification)
    assert result.accuracy.shape == (T, T)
    assert np.isfinite(result.scores["acc"])
    measured = np.tri(T, dtype=bool) if head != "fixed" else np.ones((T, T), dtype=bool)
    if method.whole_stream:
        measured = np.repeat([[False], [True]], [T - 1, 1], axis=0) & np.ones((1, T), dtype=bool)
    np.testing.assert_array_equal(np.isfinite(result.accuracy), measured)
    np.testing.assert_array_equal(np.isfinite(result.baseline), np.full(T, head == "fixed"))
