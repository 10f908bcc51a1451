"""What the tests on a GPU share: runs in float64, where both devices must agree."""

import pytest
import torch
from avalanche.benchmarks import tensors_benchmark
from tiny import N_FEATURES, make_model, make_strategy, parameter_vector, tiny_data, train

DEVICE = "cuda"
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def double_stream(n_experiences=3, n_train=24):
    """A tiny permuted stream in float64: rounding decides nothing in so short a run."""
    data = tiny_data()
    generator = torch.Generator().manual_seed(2)
    orders = [torch.randperm(N_FEATURES, generator=generator) for _ in range(n_experiences)]
    train, test = (
        [(x[:n_train, order].double(), y[:n_train]) for order in orders]
        for x, y in ((data.x_train, data.y_train), (data.x_test, data.y_test))
    )
    labels = [0] * n_experiences
    return tensors_benchmark(train_tensors=train, test_tensors=test, task_labels=labels)


def trained(device, plugins, *, stream=None, setting="single head", **options):
    """The strategy after all of the stream, in float64 unless another stream is given."""
    model = make_model(setting)
    model = model.double() if stream is None else model
    strategy = make_strategy(model, plugins, device=device, **options)
    return train(strategy, (stream or double_stream()).train_stream)


def parameters_of(strategy):
    return parameter_vector(strategy.model).cpu()
