import pytest
import torch
from avalanche.models import SlimResNet18
from torch import nn

from avalanche_mgem.experiment.models import HEADS
from avalanche_mgem.experiment.networks import (
    BatchNorm,
    cnn_body,
    slim_resnet18_body,
    with_head,
)


def test_batch_norm_is_torchs_where_torch_has_one():
    ours, theirs = BatchNorm(3), nn.BatchNorm2d(3)
    for x in (torch.randn(4, 3, 1, 1), torch.randn(1, 3, 2, 2)):
        assert torch.equal(ours(x), theirs(x))
    for left, right in zip(ours.buffers(), theirs.buffers(), strict=True):
        assert torch.equal(left, right)
    single = torch.randn(1, 3, 1, 1)
    assert torch.equal(ours.eval()(single), theirs.eval()(single))


def test_one_value_a_channel_is_normalised_by_the_running_statistics():
    norm = BatchNorm(3)
    norm(torch.randn(50, 3, 2, 2) * 5 + 2)
    before = [buffer.clone() for buffer in norm.buffers()]
    single = torch.randn(1, 3, 1, 1, requires_grad=True)
    output = norm(single)
    assert all(torch.equal(*pair) for pair in zip(before, norm.buffers(), strict=True))
    assert torch.equal(output, norm.eval()(single))
    output.sum().backward()
    assert norm.bias.grad.tolist() == [1, 1, 1]


@pytest.mark.parametrize("width", [3, 20])
def test_the_slim_resnet_computes_what_avalanches_does(width):
    """At 32 x 32; theirs pools by 4 whatever the size. Parameters are declared in one order."""
    theirs = SlimResNet18(nclasses=10, nf=width)
    body = slim_resnet18_body(3, width)
    ours = with_head(body, 8 * width, 10, "single")
    pairs = list(zip(ours.parameters(), theirs.parameters(), strict=True))
    with torch.no_grad():
        for left, right in pairs:
            assert left.shape == right.shape
            left.copy_(right)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 5, 28, 32, 64])
@pytest.mark.parametrize(
    "body", [lambda: slim_resnet18_body(2, 1), lambda: cnn_body(2, (3, 4, 5, 6, 8))]
)
def test_bodies_take_any_size_also_one_image_in_training(body, size):
    network = nn.Sequential(*body())
    for batch in (1, 3):
        assert network(torch.randn(batch, 2, size, size)).shape == (batch, 8)


def test_each_layer_of_the_cnn_halves_the_size():
    sizes, x = [], torch.randn(2, 3, 32, 32)
    for layer in cnn_body(3, (2, 2, 2, 2, 7)):
        x = layer(x)
        if isinstance(layer, nn.Conv2d):
            sizes.append(x.shape[-1])
    assert sizes == [16, 8, 4, 2, 1]
    assert x.shape == (2, 7)


class _Experience:
    """What Avalanche's dynamic modules look at."""

    def __init__(self, classes, task=0):
        self.classes_in_this_experience = classes
        self.task_labels = [task]


@pytest.mark.parametrize("heads", HEADS)
def test_heads_have_as_many_outputs_as_the_classes_that_came(heads):
    model = with_head([nn.Linear(4, 3)], 3, 6, heads)
    x = torch.randn(5, 4)
    labels = torch.zeros(5, dtype=torch.long)

    def outputs():
        return model(x, labels) if heads == "multi" else model(x)

    model_adapt(model, _Experience([0, 1, 2]))
    assert outputs().shape[1] == (3 if heads == "growing" else 6)
    model_adapt(model, _Experience([3, 5], task=1))
    labels += 1
    assert outputs().shape[1] == 6
    masked = (outputs() <= -999).all(dim=0).tolist()
    seen = {"single": range(6), "growing": (0, 1, 2, 3, 5), "multi": (3, 5)}[heads]
    assert masked == [each not in seen for each in range(6)]


def model_adapt(model, experience):
    from avalanche.models.utils import avalanche_model_adaptation

    avalanche_model_adaptation(model, experience)


def test_a_batch_may_mix_tasks_and_ask_for_all():
    model = with_head([nn.Linear(4, 3)], 3, 2, "multi")
    for task in range(3):
        model_adapt(model, _Experience([0, 1], task))
    x, tasks = torch.randn(6, 4), torch.tensor([0, 2, 1, 1, 0, 2])
    every = model(x, None)
    assert set(every) == {0, 1, 2}
    for task, outputs in every.items():
        assert torch.equal(model(x, task), outputs)
        assert torch.equal(model.forward_single_task(x, task), outputs)
        assert torch.allclose(model(x, tasks)[tasks == task], outputs[tasks == task])
