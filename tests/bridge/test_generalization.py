"""The gap between the memory and the task that it was taken from."""

import numpy as np
import pytest
import torch
from tiny import SETTINGS, Call, make_model, make_strategy, parameter_vector, snapshot, train
from torch import nn

from avalanche_mgem import MGEMPlugin
from avalanche_mgem.bridge.memory import EpisodicMemory
from avalanche_mgem.evaluation import RestrictionMetric


def trained(setting, plugin, *others):
    strategy = make_strategy(make_model(setting), [plugin, *others], train_epochs=4)
    train(strategy, SETTINGS[setting][1]().train_stream)
    return parameter_vector(strategy.model)


@pytest.mark.cover
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("selection", ["random", "class-balanced"])
def test_measuring_changes_nothing(setting, selection):
    arguments = {"memory_groups": 2, "memory_selection": selection, "seed": 0}
    plain = trained(setting, MGEMPlugin(6, **arguments))
    plugin = MGEMPlugin(6, generalization_every=1, **arguments)
    assert torch.equal(trained(setting, plugin), plain)
    assert set(plugin.last_generalization) == {0, 1}


@pytest.mark.parametrize("selection", ["random", "class-balanced"])
def test_memory_and_held_out_samples_are_disjoint_and_the_memory_is_as_without(selection):
    dataset = SETTINGS["single head"][1]().train_stream[0].dataset
    memories = [
        EpisodicMemory(10, groups=3, selection=selection, held_out=held_out, seed=0)
        for held_out in (False, True)
    ]
    for memory in memories:
        memory.observe_dataset(dataset)
        memory.close_task()
    plain, with_held_out = ([g.batch[0] for g in m.closed_groups()] for m in memories)
    for one, other in zip(plain, with_held_out, strict=True):
        assert torch.equal(one, other)
    rows = {tuple(x.tolist()) for batch in plain for x in batch}
    held_out = memories[1].held_out_groups()[0]
    assert held_out.size == len(held_out.batch[0]) == 10
    assert not rows & {tuple(x.tolist()) for x in held_out.batch[0]}
    assert memories[0].held_out_groups() == [None]


@pytest.mark.parametrize("restrict", ["gradient", "update"])
def test_the_gaps_are_those_of_the_definition(restrict):
    plugin = MGEMPlugin(7, memory_groups=2, restrict=restrict, generalization_every=2, seed=0)
    models, checked = [], []

    def flat_gradient(model, batch):
        model = snapshot(model)
        loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        return np.concatenate(
            [g.flatten().numpy() for g in torch.autograd.grad(loss, list(model.parameters()))]
        )

    def cosine(a, b):
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    def remember(strategy):
        models[:] = [snapshot(strategy.model)]

    def compare(strategy):
        if strategy.clock.train_iterations % 2 or plugin.last_projection is None:
            assert plugin.last_generalization == {}
            return
        before, after = (parameter_vector(m).numpy() for m in (models[0], strategy.model))
        z = before - after  # times the learning rate, which turns no angle
        for task, groups in enumerate(plugin.memory.closed_tasks()):
            batches = [torch.cat([g.batch[field] for g in groups]) for field in (0, 1)]
            memory = flat_gradient(models[0], batches)
            held_out = flat_gradient(models[0], plugin.memory.held_out_groups()[task].batch)
            expected = cosine(z, memory) - cosine(z, held_out)
            assert plugin.last_generalization[task] == pytest.approx(expected, abs=1e-4)
            checked.append(task)

    trained(
        "single head",
        plugin,
        Call(before_training_iteration=remember, after_training_iteration=compare),
    )
    assert set(checked) == {0, 1}


def test_a_task_with_no_sample_to_spare_is_left_out():
    plugin = MGEMPlugin(1000, generalization_every=1, seed=0)
    trained("single head", plugin)
    assert plugin.last_generalization == {}


def test_the_metric_tells_the_mean_and_each_task():
    metric = RestrictionMetric()
    plugin = MGEMPlugin(6, generalization_every=1, seed=0)
    seen = []

    def note(strategy):
        experience = strategy.experience
        strategy.experience = experience.logging()
        metric.after_training_iteration(strategy)
        strategy.experience = experience
        if plugin.last_generalization:
            seen.append(dict(plugin.last_generalization))

    trained("single head", plugin, Call(after_training_iteration=note))
    result = metric.result()
    means = [np.mean(list(gaps.values())) for gaps in seen]
    assert result["GeneralizationGap"] == pytest.approx(np.mean(means))
    for task in (0, 1):
        expected = np.mean([gaps[task] for gaps in seen if task in gaps])
        assert result[f"GeneralizationGap/task{task}"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"generalization_every": 0}, "generalization_every must be a whole number >= 1"),
        (
            {"generalization_every": 5, "memory_selection": "ring"},
            "generalization_every needs memory_selection",
        ),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        MGEMPlugin(6, **arguments)


def test_the_gap_is_the_same_where_old_rows_are_used_again():
    """The held-out rows are new then, and need the factors that the old ones got before."""

    def two_rates(model):
        first, *others = model.parameters()
        return torch.optim.SGD([{"params": [first], "lr": 1e-7}, {"params": others, "lr": 1e-5}])

    gaps = []
    for every in (1, 2):
        arguments = {"restrict": "update", "generalization_every": 1, "seed": 0}
        plugin = MGEMPlugin(8, refresh_every=every, **arguments)
        seen = []
        note = Call(
            after_training_iteration=lambda _, p=plugin, s=seen: s.append(p.last_generalization)
        )
        strategy = make_strategy(make_model(), [plugin, note], optimizer=two_rates)
        train(strategy, SETTINGS["single head"][1]().train_stream)
        gaps.append([gap[0] for gap in seen if gap])
    assert gaps[0]
    assert gaps[0] == pytest.approx(gaps[1], abs=1e-3)
