"""Avalanche's own strategies train and evaluate on every kind of stream."""

import io

import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import TextLogger
from avalanche.models import IncrementalClassifier, MultiHeadClassifier, MultiTaskModule
from avalanche.training import supervised
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from avalanche_mgem.streams import permuted_stream, rotated_stream, split_stream

pytestmark = [
    # Avalanche's synaptic intelligence passes tensors to NumPy's functions.
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
    # Its EWC indexes a grown parameter with a list of slices.
    pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning"),
]

# Streams of domains are in test_domains.py.
KINDS = {"permuted": permuted_stream, "rotated": rotated_stream, "split": split_stream}

BASELINES = {
    "Naive": {},
    "Replay": {"mem_size": 20},
    "EWC": {"ewc_lambda": 1.0},
    "SynapticIntelligence": {"si_lambda": 1.0},
    "LwF": {"alpha": 1.0, "temperature": 2.0},
    "AGEM": {"patterns_per_exp": 10, "sample_size": 10},
    "GEM": {"patterns_per_exp": 10, "memory_strength": 0.5},
    "GDumb": {"mem_size": 20},
    "Cumulative": {},
    "JointTraining": {},
}


def _features():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU())


class _MultiHead(MultiTaskModule):
    def __init__(self):
        super().__init__()
        self.features = _features()
        self.heads = MultiHeadClassifier(16)

    def forward(self, x, task_labels):
        return self.heads(self.features(x), task_labels)


def _fixed_head():
    return nn.Sequential(_features(), nn.Linear(16, 10))


def _growing_head():
    return nn.Sequential(_features(), IncrementalClassifier(16, 2))


@pytest.mark.cover
@pytest.mark.parametrize("baseline", list(BASELINES))
@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("model", [_fixed_head, _growing_head, _MultiHead])
def test_avalanches_strategies_train_and_evaluate(digits, kind, baseline, model):
    sizes = {"n_experiences": 3, "train_per_experience": 40, "test_per_experience": 30}
    stream = KINDS[kind](digits, task_labels=model is _MultiHead, **sizes)
    torch.manual_seed(0)
    network = model()
    strategy = getattr(supervised, baseline)(
        model=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=20,
        eval_mb_size=30,
        evaluator=EvaluationPlugin(
            accuracy_metrics(experience=True), loggers=[TextLogger(io.StringIO())]
        ),
        **BASELINES[baseline],
    )
    whole = baseline == "JointTraining"
    for experience in [stream.train_stream] if whole else stream.train_stream:
        strategy.train(experience)
    accuracies = list(strategy.eval(stream.test_stream).values())
    assert len(accuracies) == 3
    assert all(0 <= float(accuracy) <= 1 for accuracy in accuracies)
