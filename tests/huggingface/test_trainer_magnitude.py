"""Hybrid magnitude under transformers' Trainer, against plain Trainers and slow references."""

import copy
import json
import pickle
import random

import numpy as np
import pytest
import torch
import transformers
from torch.nn.functional import cosine_similarity, cross_entropy
from trainer_runs import (
    KNOWN_WARNINGS,
    hooks_of,
    make_model,
    make_task,
    own_environment,  # noqa: F401  # of every test here
    same,
    train,
)
from transformers import Trainer, TrainerCallback

from avalanche_mgem.huggingface import HybridMagnitudeCallback, MGEMCallback

pytestmark = KNOWN_WARNINGS

SGD = {"optim": "sgd", "learning_rate": 0.3}


def random_states():
    return random.random(), np.random.rand(), float(torch.rand(()))


def body_of(model):
    """The names of the parameters that no head has."""
    return [name for name, _ in model.named_parameters() if not name.startswith("classifier")]


def make_convolutional():
    torch.manual_seed(3)
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], layer_type="basic", num_labels=3
    )
    return transformers.ResNetForImageClassification(config)


def make_images(seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(16, 3, 16, 16, generator=generator)
    return [{"pixel_values": image, "labels": at % 3} for at, image in enumerate(images)]


def with_optimizer(optimizer):
    """Trainers that step with this one, whose state lasts from task to task."""
    return lambda **options: Trainer(optimizers=(optimizer, None), **options)


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("mode", ["adaptive", "frozen", "decay"])
def test_the_first_task_is_that_of_the_trainer_alone_to_the_bit(tmp_path, mode, accumulated):
    ends = []
    for callbacks in ([], [HybridMagnitudeCallback(mode, seed=0)]):
        model = make_model(hidden_dropout_prob=0.2)
        train(tmp_path, model, make_task(), *callbacks, gradient_accumulation_steps=accumulated)
        ends.append((model.state_dict(), random_states()))
    assert same(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]


@pytest.mark.parametrize(
    "arguments",
    [{"mode": "initialized"}, {"mode": "adaptive", "threshold": 1.5}, {"magnitude_decay": 0.0,
     "mode": "decay"}],
    ids=["initialized", "adaptive, always above", "a decay of none"],
)  # fmt: skip
def test_where_all_trains_every_task_is_that_of_the_trainer_alone(tmp_path, arguments):
    """Probes leave no trace either: dropout, the order of samples and statistics are the same."""
    ends = []
    for callbacks in ([], [HybridMagnitudeCallback(**arguments, seed=0)]):
        model, images = make_model(hidden_dropout_prob=0.2), make_convolutional()
        for number in range(3):
            train(tmp_path / "text", model, make_task(number), *callbacks)
        for number in range(2):
            again = [copy.deepcopy(callback) for callback in callbacks]
            train(tmp_path / "images", images, make_images(number), *again)
        ends.append(({**model.state_dict(), **images.state_dict()}, random_states()))
    assert same(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]


@pytest.mark.parametrize("accumulated", [1, 2])
def test_what_is_frozen_does_not_move_by_one_bit(tmp_path, accumulated):
    """Under AdamW with weight decay: parameters, their state of the optimiser and statistics."""
    model, magnitude = make_convolutional(), HybridMagnitudeCallback("frozen", low=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.5)
    settings = {"gradient_accumulation_steps": accumulated, "trainer": with_optimizer(optimizer)}
    train(tmp_path, model, make_images(), magnitude, **settings)
    before = copy.deepcopy(model.state_dict())
    states = copy.deepcopy({name: optimizer.state[p] for name, p in model.named_parameters()})
    settings |= {"eval_strategy": "steps", "eval_steps": 2}
    train(tmp_path, model, make_images(1), magnitude, **settings)

    decision = magnitude.last_decision
    assert len(decision.trained) == 1
    assert len(decision.modules) > 2
    trains = ("resnet.encoder.stages.1.", "classifier.")
    moved = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert moved == {name for name in before if name.startswith(trains)}
    for name, parameter in model.named_parameters():
        equal = all(value.equal(states[name][key])
                    for key, value in optimizer.state[parameter].items())  # fmt: skip
        assert equal is not name.startswith(trains)
    assert all(p.requires_grad for p in model.parameters())
    assert len({module.training for module in model.modules()}) == 1
    assert hooks_of(model) == 0


class Lookahead(torch.optim.AdamW):
    """Moves parameters without a gradient too."""

    def step(self, closure=None):
        super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.mul_(0.9)


def test_an_optimiser_that_moves_what_has_no_gradient_does_not_move_what_is_frozen(tmp_path):
    model, magnitude = make_model(), HybridMagnitudeCallback("frozen", low=0)
    trainer = with_optimizer(Lookahead(model.parameters(), lr=0.01))
    train(tmp_path, model, make_task(), magnitude, trainer=trainer)
    before = copy.deepcopy(model.state_dict())
    train(tmp_path, model, make_task(1), magnitude, trainer=trainer)
    kept = {name for name, value in model.state_dict().items() if value.equal(before[name])}
    assert kept == set(body_of(model))


class Steps(TrainerCallback):
    """Notes the gradients of each step, and where the parameters are then."""

    def __init__(self):
        self.gradients, self.parameters = [], []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        named = kwargs["model"].named_parameters()
        self.gradients.append({n: None if p.grad is None else p.grad.clone() for n, p in named})

    def on_optimizer_step(self, args, state, control, **kwargs):
        named = kwargs["model"].named_parameters()
        self.parameters.append({name: p.detach().clone() for name, p in named})


def slow_steps(model, optimizer, gradients, scaled, factor):
    """Yield the parameters after each step: an own optimiser's, of which the body goes a part."""
    named = dict(model.named_parameters())
    for step in gradients:
        before = {name: p.detach().clone() for name, p in named.items()}
        for name, parameter in named.items():
            parameter.grad = step[name]
        optimizer.step()
        with torch.no_grad():
            for name in scaled:
                named[name].copy_(before[name] + factor * (named[name] - before[name]))
        yield {name: p.detach().clone() for name, p in named.items()}


def groups_of(model, trainer):
    decaying = set(trainer.get_decay_parameter_names(model))
    named = list(model.named_parameters())
    return [
        {"params": [p for n, p in named if n in decaying], "weight_decay": 0.1},
        {"params": [p for n, p in named if n not in decaying], "weight_decay": 0.0},
    ]


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("max_grad_norm", [0.0, 0.05])
@pytest.mark.parametrize(
    ("make", "settings"),
    [(lambda g: torch.optim.SGD(g, lr=0.3), SGD), (lambda g: torch.optim.AdamW(g, lr=0.01), {})],
    ids=["SGD", "AdamW"],
)
@pytest.mark.parametrize(
    ("arguments", "factor"),
    [({"magnitude_decay": 0.7}, 2**-0.7), ({"magnitude": lambda task, similarity: task / 8}, 0.25)],
    ids=["t^-p", "a magnitude of one's own"],
)
def test_decay_scales_the_steps_of_the_body(
    tmp_path, arguments, factor, make, settings, max_grad_norm, accumulated
):
    model, magnitude = make_model(), HybridMagnitudeCallback("decay", **arguments)
    settings = {
        **settings,
        "max_grad_norm": max_grad_norm,
        "gradient_accumulation_steps": accumulated,
    }
    train(tmp_path, model, make_task(), magnitude, max_steps=1, **settings)
    copied, steps = copy.deepcopy(model), Steps()
    trainer = train(tmp_path, model, make_task(1), magnitude, steps, **settings)
    if max_grad_norm:
        for step in steps.gradients:
            parts = [value.flatten() for value in step.values() if value is not None]
            assert float(torch.cat(parts).norm()) <= max_grad_norm + 1e-6
    optimizer = make(groups_of(copied, trainer))
    slow = slow_steps(copied, optimizer, steps.gradients, body_of(copied), factor)
    assert len(steps.parameters) == 4
    for found, expected in zip(steps.parameters, slow, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_what_would_be_frozen_goes_a_part_of_the_way(tmp_path):
    model = make_model()
    magnitude = HybridMagnitudeCallback("frozen", low=0, low_magnitude=0.25)
    train(tmp_path, model, make_task(), magnitude)
    copied, steps = copy.deepcopy(model), Steps()
    trainer = train(tmp_path, model, make_task(1), magnitude, steps)
    optimizer = torch.optim.AdamW(groups_of(copied, trainer), lr=0.01)
    slow = slow_steps(copied, optimizer, steps.gradients, body_of(copied), 0.25)
    for found, expected in zip(steps.parameters, slow, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


class Doubled(Trainer):
    """A loss of its own."""

    def compute_loss(self, model, inputs, **kwargs):
        labels = inputs.pop("labels")
        return 2 * cross_entropy(model(**inputs).logits, labels, label_smoothing=0.3)


def slow_gradient(model, task):
    """Of the mean loss on the whole task, of the parameters of the body."""
    batch = transformers.default_data_collator(task)
    labels = batch.pop("labels")
    loss = 2 * cross_entropy(model(**batch).logits, labels, label_smoothing=0.3)
    body = [model.get_parameter(name) for name in body_of(model)]
    found = torch.autograd.grad(loss, body, allow_unused=True)
    parts = [p.new_zeros(p.shape) if g is None else g for p, g in zip(body, found, strict=True)]
    return torch.cat([part.flatten() for part in parts])


def test_the_similarity_is_that_of_the_gradients_of_the_trainers_own_loss(tmp_path):
    """All samples are probed: g_t before a task trains, g_{t-1} where the one before has ended."""
    model, magnitude = make_model(), HybridMagnitudeCallback(probe_batches=4, seed=0)
    train(tmp_path, model, make_task(), magnitude, trainer=Doubled)
    earlier = slow_gradient(model, make_task())
    for number in (1, 2):
        now = slow_gradient(model, make_task(number))
        train(tmp_path, model, make_task(number), magnitude, trainer=Doubled, **SGD)
        decision = magnitude.last_decision
        expected = float(cosine_similarity(now, earlier, dim=0))
        assert decision.similarity == pytest.approx(expected, abs=1e-4)
        assert decision.probe_head == "own"
        assert len(decision.trained) == (len(decision.modules) if expected < 0 else 1)
        earlier = slow_gradient(model, make_task(number))


@pytest.mark.parametrize(("threshold", "all_train"), [(1.5, True), (-1.5, False)])
def test_above_the_threshold_few_modules_train(tmp_path, threshold, all_train):
    model, magnitude = make_model(), HybridMagnitudeCallback(threshold=threshold, low=0, seed=0)
    train(tmp_path, model, make_task(), magnitude)
    before = copy.deepcopy(model.state_dict())
    train(tmp_path, model, make_task(1), magnitude)
    kept = {name for name, value in model.state_dict().items() if value.equal(before[name])}
    assert kept == (set() if all_train else set(body_of(model)))


RESUMED = [
    {"mode": "frozen"},
    {"mode": "decay"},
    {"mode": "adaptive", "probe_batches": 2, "threshold": -1.5, "magnitude_decay": 0.5},
    {"mode": "adaptive", "probe_batches": 1, "granularity": "module"},
]


@pytest.mark.parametrize("how", ["restored by the Trainer", "loaded"])
@pytest.mark.parametrize("arguments", RESUMED, ids=["frozen", "decay", "adaptive", "by module"])
def test_a_resumed_trainer_is_the_uninterrupted_one_to_the_bit(tmp_path, arguments, how):
    """The second of three tasks is broken off after two steps, by a process that is gone."""
    saves = {"save_strategy": "steps", "save_steps": 2}
    whole = make_model(hidden_dropout_prob=0.1)
    magnitude = HybridMagnitudeCallback(**arguments, seed=1)
    train(tmp_path / "0", whole, make_task(), magnitude)
    train(tmp_path / "1", whole, make_task(1), magnitude, **saves)
    train(tmp_path / "2", whole, make_task(2), magnitude)
    last = magnitude.last_decision

    checkpoint = str(tmp_path / "1" / "checkpoint-2")
    resumed, options = make_model(hidden_dropout_prob=0.1), {"resume": checkpoint}
    if how == "loaded":
        again = HybridMagnitudeCallback(**arguments, seed=99)
        again.load(checkpoint)
    else:
        again = HybridMagnitudeCallback()
        options["restore_callback_states_from_checkpoint"] = True
    trainer = train(tmp_path / "3", resumed, make_task(1), again, **options)
    (again,) = [
        c for c in trainer.callback_handler.callbacks if isinstance(c, HybridMagnitudeCallback)
    ]
    assert again.tasks == 2
    train(tmp_path / "4", resumed, make_task(2), again)
    assert same(resumed.state_dict(), whole.state_dict())
    assert again.last_decision == last


def test_arguments_are_kept_as_json_and_objects_are_not():
    magnitude = HybridMagnitudeCallback("decay", low=np.int64(2), modules=["a", "b"])
    state = json.loads(json.dumps(magnitude.state()))
    again = HybridMagnitudeCallback(**state["args"])
    assert json.loads(json.dumps(again.state()["args"])) == state["args"]
    assert state["attributes"]["objects"] == []
    magnitude = HybridMagnitudeCallback("decay", magnitude=lambda task, similarity: 1.0)
    assert magnitude.state()["attributes"]["objects"] == ["magnitude"]


def test_a_task_whose_predecessor_is_not_known_is_refused(tmp_path):
    magnitude = HybridMagnitudeCallback(seed=0)
    magnitude.tasks = 2
    with pytest.raises(ValueError, match=r"2 tasks have ended, and the gradient of the last is"):
        train(tmp_path, make_model(), make_task(), magnitude)


class Failing(Trainer):
    """Breaks off in its second step."""

    def training_step(self, *arguments, **keywords):
        if self.state.global_step == 1:
            raise RuntimeError("out of memory")
        return super().training_step(*arguments, **keywords)


def broken_off(tmp_path, model, **arguments):
    """A callback whose second task has ended by an error."""
    magnitude = HybridMagnitudeCallback("frozen", **arguments)
    train(tmp_path, model, make_images(), magnitude)
    with pytest.raises(RuntimeError, match="out of memory"):
        train(tmp_path, model, make_images(1), magnitude, trainer=Failing)
    assert magnitude.tasks == 1
    assert not all(p.requires_grad for p in model.parameters())
    return magnitude


def moved_by(tmp_path, model, magnitude):
    before = copy.deepcopy(model.state_dict())
    train(tmp_path, model, make_images(1), magnitude)
    assert (magnitude.tasks, hooks_of(model)) == (2, 0)
    assert all(p.requires_grad for p in model.parameters())
    return {name for name, value in model.state_dict().items() if not value.equal(before[name])}


def test_a_new_trainer_trains_what_a_failed_one_left_frozen(tmp_path):
    """The optimiser has only what is not frozen when it is made, before training begins."""
    model = make_convolutional()
    magnitude = broken_off(tmp_path, model, low=0)
    assert moved_by(tmp_path, model, magnitude) == {"classifier.1.weight", "classifier.1.bias"}
    model = make_convolutional()
    magnitude = broken_off(tmp_path, model, low=0)
    magnitude.mode = "initialized"
    moved = moved_by(tmp_path, model, magnitude)
    assert {name for name, _ in model.named_parameters()} <= moved


def test_an_optimiser_that_was_made_of_a_frozen_model_is_refused(tmp_path):
    model = make_convolutional()
    magnitude = broken_off(tmp_path, model)
    arguments = train(tmp_path, make_convolutional(), make_images(), max_steps=1).args
    late = Trainer(model=model, args=arguments, train_dataset=make_images(1))
    late.add_callback(magnitude)
    with pytest.raises(RuntimeError, match=r"call the callback's thaw\(model\)"):
        late.train()
    magnitude.thaw(model)
    assert all(p.requires_grad for p in model.parameters())
    assert hooks_of(model) == 0


def test_a_pickle_goes_on_with_the_next_task(tmp_path):
    ends = []
    for copied in (False, True):
        model, magnitude = make_model(), HybridMagnitudeCallback(threshold=-1.5, seed=0)
        train(tmp_path, model, make_task(), magnitude)
        magnitude = pickle.loads(pickle.dumps(magnitude)) if copied else magnitude
        train(tmp_path, model, make_task(1), magnitude)
        ends.append(model.state_dict())
    assert same(*ends)


@pytest.mark.parametrize("arguments", [{"mode": "decay"}, {"mode": "frozen", "low": 1}])
def test_mgem_beside_it_restricts_the_scaled_step(tmp_path, arguments):
    """<step, row> >= 0 for what trains: the memory's cone holds behind the scaling."""
    model, steps = make_model(), []
    mgem = MGEMCallback(6, 0.0, memory_groups=2, restrict="update", seed=0)

    class Note(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            moving = [p for p in kwargs["model"].parameters() if p.requires_grad]
            self.start = torch.cat([p.detach().flatten() for p in moving])

        def on_optimizer_step(self, args, state, control, **kwargs):
            moving = [p for p in kwargs["model"].parameters() if p.requires_grad]
            step = self.start - torch.cat([p.detach().flatten() for p in moving])
            steps.extend((float(row @ step), float(row.norm())) for row in mgem._matrix.rows)

    magnitude = HybridMagnitudeCallback(**arguments)
    for number in range(3):
        train(tmp_path, model, make_task(number), magnitude, mgem, Note(), learning_rate=0.05)
    assert len(steps) == 4 * (2 + 4)
    assert all(product >= -1e-5 * size - 1e-6 for product, size in steps)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_what_cannot_be_is_refused_before_training(tmp_path):
    def fails(magnitude, match, *before, model=None, task=None, **settings):
        with pytest.raises(ValueError, match=match):
            train(
                tmp_path, model or make_model(), task or make_task(), *before, magnitude, **settings
            )

    with pytest.raises(ValueError, match="probe_head='ridge' fits a head to classes"):
        HybridMagnitudeCallback(probe_head="ridge")
    with pytest.raises(ValueError, match="high must be >= low"):
        HybridMagnitudeCallback(low=3, high=2)
    with pytest.raises(ValueError, match="magnitude_decay and magnitude"):
        HybridMagnitudeCallback(magnitude_decay=0.5, magnitude=lambda task, similarity: 1.0)
    fails(HybridMagnitudeCallback("frozen", low=90), "low=90 is more than the model has modules")
    fails(HybridMagnitudeCallback(heads="nothing*"), r"heads: 'nothing\*' matches no module")
    mgem = MGEMCallback(2, restrict="update")
    fails(HybridMagnitudeCallback("decay"), "put it before that", mgem)
    model = make_model()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    fails(HybridMagnitudeCallback("frozen"), "use_reentrant=True, modules behind", model=model)
    model = torch.nn.LSTM(2, 2)
    fails(HybridMagnitudeCallback("decay"), "no output head is found in LSTM", model=model)
    with pytest.raises(RuntimeError, match="hand it to a Trainer's callbacks"):
        HybridMagnitudeCallback().on_train_begin(None, None, None)


class Half(TrainerCallback):
    """Stands for fp16=True, which no CPU trains in."""

    def on_train_begin(self, args, state, control, **kwargs):
        args.fp16 = True


class Stream(torch.utils.data.IterableDataset):
    """Has no positions."""

    def __iter__(self):
        return iter(make_task())


def test_what_only_gradients_need_is_asked_for_by_adaptive_alone(tmp_path):
    with pytest.raises(ValueError, match="an iterable data set has none"):
        train(tmp_path, make_model(), Stream(), HybridMagnitudeCallback())
    train(tmp_path, make_model(), Stream(), HybridMagnitudeCallback("frozen"))
    with pytest.raises(ValueError, match="use bf16=True"):
        train(tmp_path, make_model(), make_task(), Half(), HybridMagnitudeCallback())


def test_a_gradient_that_is_not_finite_is_said(tmp_path):
    model, magnitude = make_model(), HybridMagnitudeCallback(seed=0)
    train(tmp_path, model, make_task(), magnitude)
    torch.nn.init.constant_(model.classifier.out_proj.weight, float("inf"))
    with pytest.raises(FloatingPointError, match=r"in experience 1, iteration 0"):
        train(tmp_path, model, make_task(1), magnitude)
