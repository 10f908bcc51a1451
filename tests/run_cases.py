"""Tiny runs for the tests of the experiments; importable by worker processes."""

from avalanche.models import IncrementalClassifier
from avalanche.training.supervised import Naive
from tiny import tiny_data
from torch import nn

from avalanche_mgem.experiment import Method, MLPFactory, Training, find_method
from avalanche_mgem.experiment.configuration import RunSpecification
from avalanche_mgem.streams import permuted_stream, split_stream

MODEL = MLPFactory((8,))
TRAINING = Training(memory=16, batch_size=8)


def permuted(seed):
    return permuted_stream(tiny_data(), n_experiences=3, train_per_experience=24, seed=seed)


def split(seed):
    return split_stream(tiny_data(), n_experiences=3, seed=seed)


STREAMS = {"permuted": permuted, "split": split}


def growing_model(sample_shape, n_classes):
    return nn.Sequential(nn.Linear(*sample_shape, 8), nn.ReLU(), IncrementalClassifier(8, 2))


def dropout_model(sample_shape, n_classes):
    return nn.Sequential(nn.Linear(*sample_shape, 8), nn.Dropout(0.3), nn.Linear(8, n_classes))


class Failing(Naive):
    """Fails in the second experience."""

    def train(self, experiences, *args, **kwargs):
        if experiences.current_experience == 1:
            raise RuntimeError("[out] of luck")
        return super().train(experiences, *args, **kwargs)


FAILING = Method("failing", Failing)


def specification(method="naive", *, stream=permuted, seed=0, model=MODEL, training=TRAINING):
    method = find_method(method) if isinstance(method, str) else method
    return RunSpecification(method, stream, seed, model, training)
