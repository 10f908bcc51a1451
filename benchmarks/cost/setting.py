"""The state in which both plugins are measured: trained weights, a memory, a strategy."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from avalanche.benchmarks import CLScenario
from avalanche.training.plugins import GEMPlugin
from avalanche.training.supervised import Naive
from cost_cases import RIDGE, Case
from torch import nn

from avalanche_mgem import MGEMPlugin
from avalanche_mgem.experiment import MLPFactory, SlimResNet18Factory
from avalanche_mgem.streams import ArrayData, load_data, permuted_stream

BATCH_SIZE = 10
LEARNING_RATE = 0.1
MOST_TASKS = 100
_STORED_FROM = 1000  # training samples of each past task
_NOISE = 0.1

# model -> (its factory, pixels a side, channels, examples that each past task is trained on)
MODELS = {
    "mlp": (MLPFactory((100, 100)), 28, 1, _STORED_FROM),
    "wide": (MLPFactory((1024, 960)), 28, 1, 20),
    "million": (MLPFactory((680, 680)), 28, 1, 20),
    "ten-million": (MLPFactory((2800, 2800)), 28, 1, 10),
    "resnet": (SlimResNet18Factory(), 32, 3, 200),
}


def experience_of(case: Case, examples: int) -> Any:
    """Return the task after the past ones, with this many examples."""
    return _stream(case.model, examples).train_stream[case.tasks]


def start_model(case: Case) -> nn.Module:
    """Return a new copy of the network that has been trained on the past tasks, one by one."""
    return copy.deepcopy(_trained(case.model, case.tasks))


def learning_rate(case: Case) -> float:
    """Return the rate of the current task.

    The cost does not depend on it. But GEM adds gamma times every row, and with many rows at
    gamma 0.5 a rate of 0.1 makes training unstable: rounding grows until nothing can be compared.
    So rate * gamma * rows is at most 0.1, the rate at which the past tasks were trained.
    """
    return LEARNING_RATE / max(case.gamma * case.rows, 1.0)


def make_strategy(
    case: Case,
    plugins: Sequence[Any],
    memories: int,
    rate: float | None = None,
    *,
    kind: Callable[..., Naive] = Naive,
    device: torch.device | str = "cpu",
) -> Naive:
    """Return a strategy at the start of the current task that has seen this many `memories`.

    GEMPlugin takes the number of its memories from the strategy's count of experiences. rate: the
    learning rate; None: `learning_rate(case)`. kind: the strategy's class, or what makes one.
    """
    model = start_model(case)
    strategy = kind(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=rate or learning_rate(case)),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=BATCH_SIZE,
        plugins=list(plugins),
        evaluator=None,
        device=device,
    )
    strategy.clock.train_exp_counter = memories
    return strategy


def make_ours(case: Case, device: torch.device | str | None = None) -> MGEMPlugin:
    """Return MGEMPlugin with the memory of the past tasks, kept on the device."""
    arguments: dict[str, Any] = dict(case.arguments)
    if case.baseline == "gem-groups":
        arguments["memory_strength_per"] = "row"  # as it is where the groups are tasks
    if case.same_problem:
        arguments["ridge"] = RIDGE
    plugin = MGEMPlugin(
        case.patterns,
        case.gamma,
        parameter_groups=case.parameter_groups,
        memory_groups=min(case.memory_groups, case.patterns),
        memory_device=device,
        seed=0,
        **arguments,
    )
    for experience in _stream(case.model, _STORED_FROM).train_stream[: case.tasks]:
        plugin.memory.observe_dataset(experience.dataset.subset(range(case.patterns)))
        plugin.memory.close_task()
    return plugin


def make_baseline(case: Case, ours: MGEMPlugin) -> GEMPlugin:
    """Return GEMPlugin with exactly the patterns that ours holds, a memory a task or a group.

    They are in host memory, where GEMPlugin keeps them.
    """
    groups_of_tasks = ours.memory.closed_tasks()
    if case.baseline == "gem-groups":
        batches = [group.batch for task in groups_of_tasks for group in task]
    else:
        batches = [_joined([group.batch for group in task]) for task in groups_of_tasks]
    plugin = GEMPlugin(case.patterns // (len(batches) // case.tasks), case.gamma)
    for index, batch in enumerate(batches):
        x, y, task_labels = (part.cpu() for part in batch)
        plugin.memory_x[index], plugin.memory_y[index] = x, y
        plugin.memory_tid[index] = task_labels
    return plugin


def parameter_vector(model: nn.Module) -> torch.Tensor:
    """Return all parameters, [P]."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def gradient_vector(model: nn.Module) -> torch.Tensor:
    """Return all gradients, [P]."""
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return ||a - b|| / ||b||, summed in float64; NaN where b is not finite."""
    a, b = a.double(), b.double()
    return float((a - b).norm() / b.norm())


def _joined(batches: list[Any]) -> list[torch.Tensor]:
    return [torch.cat(parts) for parts in zip(*batches, strict=True)]


@cache
def _data(size: int, channels: int) -> ArrayData:
    """Scikit-learn's digits, as large as the network takes them, with noise."""
    digits = load_data("digits").resized(size)
    generator = torch.Generator().manual_seed(0)
    train, test = (
        (x + _NOISE * torch.randn(x.shape, generator=generator)).repeat(1, channels, 1, 1)
        for x in (digits.x_train, digits.x_test)
    )
    return ArrayData("noisy digits", train, digits.y_train, test, digits.y_test)


@cache
def _stream(model: str, examples: int) -> CLScenario:
    """Permutations of the digits: the same ones, whatever the number of examples of each."""
    _, size, channels, _ = MODELS[model]
    return permuted_stream(
        _data(size, channels),
        n_experiences=MOST_TASKS + 1,
        train_per_experience=examples,
        test_per_experience=10,
    )


@cache
def _trained(model: str, tasks: int) -> nn.Module:
    """The network after so many tasks; what fewer tasks took is not trained again."""
    factory, size, channels, examples = MODELS[model]
    if tasks == 0:
        torch.manual_seed(0)
        return factory((channels, size, size), 10)
    network = copy.deepcopy(_trained(model, tasks - 1))
    torch.manual_seed(tasks)
    Naive(
        model=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=LEARNING_RATE),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=BATCH_SIZE,
        evaluator=None,
    ).train(_stream(model, examples).train_stream[tasks - 1])
    return network
