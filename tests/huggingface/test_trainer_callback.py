"""MIGU under transformers' Trainer, against plain Trainers and a slow reference."""

import copy
import json
import pickle
import sys

import peft
import pytest
import torch
import transformers
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from mixtures import NEEDS_EXPERTS, make_batch, make_mixture
from trainer_runs import (  # own_environment is of every test here
    KNOWN_WARNINGS,
    hooks_of,
    make_model,
    make_task,
    own_environment,  # noqa: F401
    same,
    train,
)
from transformers import Trainer, TrainerCallback, TrainingArguments

from avalanche_mgem import huggingface
from avalanche_mgem.huggingface import MIGUCallback
from avalanche_mgem.model import kept_gradients
from avalanche_mgem.model.layers import resolve_gated_layers
from avalanche_mgem.restriction.rows import n_masked

pytestmark = KNOWN_WARNINGS

T = 0.4
# The older name of two is deprecated.
CHECKPOINTING = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in TrainingArguments.__dataclass_fields__
)
LAYER = "roberta.encoder.layer.0.intermediate.dense"


class Watch(TrainerCallback):
    """Notes the masks, and what every step did to the model; listed after the callback."""

    def __init__(self, migu=None):
        self.migu, self.masks, self.scores, self.steps, self.before = migu, [], [], [], None

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.before = copy.deepcopy(kwargs["model"].state_dict())
        if self.migu is not None:
            self.masks.append(self.migu.last_mask)
            self.scores.append(self.migu.last_scores)

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.steps.append((self.before, copy.deepcopy(kwargs["model"].state_dict())))


@pytest.mark.parametrize("freeze", ["gradient", "update"])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_with_nothing_masked_it_is_the_plain_trainer_to_the_bit(tmp_path, freeze, accumulated):
    states = []
    for callbacks in ([], [MIGUCallback(0.0, skip_tasks=0, freeze=freeze)]):
        model = make_model()
        train(tmp_path, model, make_task(), *callbacks, gradient_accumulation_steps=accumulated)
        states.append(model.state_dict())
    assert same(*states)


def test_each_train_is_a_task_and_the_first_is_free(tmp_path):
    model, plain, migu = make_model(), make_model(), MIGUCallback(T)
    watch = Watch(migu)
    train(tmp_path, plain, make_task())
    train(tmp_path, model, make_task(), migu, watch)
    assert same(model.state_dict(), plain.state_dict())
    assert watch.masks == [None] * 4
    assert watch.scores[-1][LAYER].shape == (10,)
    assert migu.tasks == 1
    train(tmp_path, model, make_task(1), migu, watch)
    assert migu.tasks == 2
    assert {name.rpartition(".")[2] for name in watch.masks[-1]} >= {"query", "dense"}
    for mask in watch.masks[4:]:
        assert not any("classifier" in name for name in mask)
        for kept in mask.values():
            assert int((~kept).sum()) == n_masked(T, len(kept)) > 0


def moved_rows(step, name):
    before, after = step
    return (before[f"{name}.weight"] != after[f"{name}.weight"]).any(1)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_masked_rows_do_not_move_by_a_bit_under_adamw(tmp_path, accumulated, bf16):
    migu = MIGUCallback(T, skip_tasks=0, freeze="update")
    watch = Watch(migu)
    settings = {"gradient_accumulation_steps": accumulated, "bf16": bf16}
    train(tmp_path, make_model(), make_task(), migu, watch, **settings)
    assert len(watch.steps) == 4
    for mask, step in zip(watch.masks, watch.steps, strict=True):
        for name, kept in mask.items():
            moved = moved_rows(step, name)
            assert not moved[~kept].any()
            assert moved[kept].any()


@NEEDS_EXPERTS
def test_experts_and_parts_of_fused_layers(tmp_path):
    """Each expert's masked rows stay, and a resumed callback knows how layers are divided."""
    model = make_mixture("mixtral", "grouped_mm")
    task = [{"input_ids": make_batch(i)["input_ids"][0], "labels": make_batch(i)["input_ids"][0]}
            for i in range(16)]  # fmt: skip
    migu = MIGUCallback(0.6, skip_tasks=0, freeze="update", fused={"o_proj": (8, 4, 4)})
    watch = Watch(migu)
    train(tmp_path, model, task, migu, watch, gradient_accumulation_steps=2)
    gated = resolve_gated_layers(model, watch.masks[-1], fused=migu.state()["args"]["fused"])
    assert {layer.name.rpartition("o_proj")[2] for layer in gated} >= {".q", ".k", ".v"}
    assert sorted(layer.blocks for layer in gated if layer.blocks) == [(4,), (4, 2)]
    for mask, (before, after) in zip(watch.masks, watch.steps, strict=True):
        for layer in gated:
            for rows in layer.rows:
                differ = rows.of(before[rows.name] != after[rows.name])
                kept = mask[layer.name].view(rows.unit_shape)
                assert not differ[~kept].any()
                assert differ[kept].any()
    again = MIGUCallback(**json.loads(json.dumps(migu.state()))["args"])
    assert again.state() == migu.state() | {"attributes": {"tasks": 0, "draws": 0}}


def test_a_masked_gradient_alone_does_not_stop_weight_decay(tmp_path):
    migu = MIGUCallback(T, skip_tasks=0)
    watch = Watch(migu)
    train(tmp_path, make_model(), make_task(), migu, watch)
    masked = [(~mask[LAYER], step) for mask, step in zip(watch.masks, watch.steps, strict=True)]
    assert all(moved_rows(step, LAYER)[rows].all() for rows, step in masked)


class Batches(Trainer):
    """Keeps a copy of the model and every micro batch that it is trained on."""

    def training_step(self, model, inputs, *args, **kwargs):
        self.__dict__.setdefault("seen", []).append((copy.deepcopy(model), copy.copy(inputs)))
        return super().training_step(model, inputs, *args, **kwargs)


def slow_scores(passes, layer, ignore_padding):
    """The mean of |y| over the tokens of all passes, in a forward pass of its own each."""
    total, count = 0.0, 0
    for model, inputs in passes:
        outputs = []
        hook = model.get_submodule(layer).register_forward_hook(
            lambda module, arguments, output, outputs=outputs: outputs.append(output)
        )
        with torch.no_grad():
            model(**inputs)
        hook.remove()
        (output,) = outputs
        tokens = output.reshape(-1, output.shape[-1]).abs().double()
        if ignore_padding:
            tokens = tokens[inputs["attention_mask"].flatten() == 1]
        total, count = total + tokens.sum(0), count + len(tokens)
    return total / count


@pytest.mark.parametrize("ignore_padding", [False, True])
def test_masks_are_those_of_all_micro_batches_of_a_step(tmp_path, ignore_padding):
    migu = MIGUCallback(T, skip_tasks=0, ignore_padding=ignore_padding)
    watch = Watch(migu)
    trainer = train(
        tmp_path,
        make_model(),
        make_task(size=20),  # of five micro batches, the last makes a step of its own
        migu,
        watch,
        trainer=Batches,
        gradient_accumulation_steps=2,
        max_steps=3,
    )
    passes = [trainer.seen[0:2], trainer.seen[2:4], trainer.seen[4:5]]
    assert len(trainer.seen) == 5
    for own, mask, scores in zip(passes, watch.masks, watch.scores, strict=True):
        for name in mask:
            expected = slow_scores(own, name, ignore_padding)
            torch.testing.assert_close(scores[name].double(), expected, rtol=1e-5, atol=1e-7)
            lowest = expected.argsort(stable=True)[: int((~mask[name]).sum())]
            assert not mask[name][lowest].any()


class Busy(Trainer):
    """Looks at the model in the middle of a step as well: without a graph, in evaluation mode."""

    def training_step(self, model, inputs, *args, **kwargs):
        with torch.no_grad():
            model.train()(**{**inputs, "input_ids": inputs["input_ids"].flip(1)})
        model.eval()(input_ids=torch.full((2, 3), 7))
        return super().training_step(model, inputs, *args, **kwargs)


@pytest.mark.parametrize(
    ("trainer", "settings"),
    [
        (Trainer, {"eval_strategy": "steps", "eval_steps": 1}),
        (Busy, {}),
        (Trainer, {CHECKPOINTING: True}),
    ],
    ids=["evaluation", "forward passes beside", "checkpointing"],
)
def test_only_the_passes_that_are_trained_on_are_recorded(tmp_path, trainer, settings):
    shown, states = [], []
    for kind, extra in ((Trainer, {}), (trainer, settings)):
        model, migu = make_model(), MIGUCallback(T, skip_tasks=0)
        watch = Watch(migu)
        train(tmp_path, model, make_task(), migu, watch, trainer=kind, **extra)
        shown.append(watch.scores)
        states.append(model.state_dict())
    for one, other in zip(*shown, strict=True):
        assert same(one, other)
    assert same(*states)


class AroundTheModel(Trainer):
    """Computes the loss without calling the model itself."""

    def compute_loss(self, model, inputs, **kwargs):
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        logits = model.classifier(model.roberta(**inputs).last_hidden_state)
        return torch.nn.functional.cross_entropy(logits, labels)


def test_a_loss_around_the_model_is_refused_or_masked_anew_each_step(tmp_path):
    with pytest.raises(RuntimeError, match="no output of a gated layer was seen"):
        train(tmp_path / "0", make_model(), make_task(), MIGUCallback(T), trainer=AroundTheModel)

    migu, masks = MIGUCallback(T, score="random", skip_tasks=0), []
    watch = TrainerCallback()
    watch.on_optimizer_step = lambda *args, **kwargs: masks.append(migu.last_mask[LAYER].tolist())
    train(tmp_path / "1", make_model(), make_task(), migu, watch, trainer=AroundTheModel)
    assert len({tuple(mask) for mask in masks}) == len(masks) > 1


def test_no_hook_is_left_on_the_model_or_the_optimiser(tmp_path):
    class Between(Watch):
        def on_optimizer_step(self, args, state, control, **kwargs):
            self.steps.append((hooks_of(kwargs["model"]), hooks_of_step(kwargs["optimizer"])))

        def on_step_end(self, args, state, control, **kwargs):
            self.masks.append(hooks_of(kwargs["model"]))

    def hooks_of_step(optimizer):
        inner = optimizer.optimizer
        return len(inner._optimizer_step_pre_hooks), len(inner._optimizer_step_post_hooks)

    migu, watch, model = MIGUCallback(T, skip_tasks=0, freeze="update"), Between(), make_model()
    trainer = train(tmp_path, model, make_task(), migu, watch, eval_strategy="epoch")
    assert watch.steps == [(0, (0, 0))] * 4
    assert watch.masks == [0] * 4
    assert hooks_of(model) == 0
    trainer.predict(make_task())
    pickle.loads(pickle.dumps(migu))


def test_a_step_that_fails_is_cleaned_up_by_the_next_training(tmp_path):
    class Failing(Trainer):
        def training_step(self, model, inputs, *args, **kwargs):
            super().training_step(model, inputs, *args, **kwargs)
            copied = copy.deepcopy(model)
            assert copied(**inputs).loss is not None  # its hooks do nothing
            raise RuntimeError("out of memory")

    model, migu = make_model(), MIGUCallback(T)
    with pytest.raises(RuntimeError, match="out of memory"):
        train(tmp_path, model, make_task(), migu, trainer=Failing)
    assert migu.tasks == 0  # a task that failed is not over
    train(tmp_path, model, make_task(), migu)
    assert migu.tasks == 1
    assert hooks_of(model) == 0


def test_a_forward_pass_that_fails_says_why(tmp_path):
    model, migu = make_model(), MIGUCallback(T)
    with pytest.raises(IndexError, match="out of range"):
        train(tmp_path, model, [{"input_ids": torch.tensor([99]), "labels": 0}] * 8, migu)
    assert hooks_of(model) == 2  # the window itself is shut; a training to come takes these off
    train(tmp_path, model, make_task(), migu)
    assert hooks_of(model) == 0


@pytest.mark.parametrize(("score", "draws"), [("output", 0), ("random", 6)])
def test_a_resumed_trainer_knows_the_task(tmp_path, score, draws):
    """Tasks 0 and 1, the second broken off after two steps and resumed by a new callback."""
    whole, broken = make_model(), make_model()
    settings = {"freeze": "update", "target_modules": {"query", "dense"}, "score": score, "seed": 1}
    migu = MIGUCallback(T, **settings)
    train(tmp_path / "0", whole, make_task(), migu)
    train(tmp_path / "1", whole, make_task(1), migu)

    migu = MIGUCallback(T, **settings)
    train(tmp_path / "2", broken, make_task(), migu)
    saving = {"save_strategy": "steps", "save_steps": 2}
    train(tmp_path / "3", broken, make_task(1), migu, **saving)
    stored = json.loads((tmp_path / "3" / "checkpoint-2" / "trainer_state.json").read_text())
    attributes = stored["stateful_callbacks"]["MIGUCallback"]["attributes"]
    assert attributes == {"tasks": 1, "draws": draws}

    resumed = make_model()
    trainer = train(
        tmp_path / "4",
        resumed,
        make_task(1),
        MIGUCallback(),
        resume=str(tmp_path / "3" / "checkpoint-2"),
        restore_callback_states_from_checkpoint=True,
    )
    assert same(resumed.state_dict(), whole.state_dict())
    (callback,) = [c for c in trainer.callback_handler.callbacks if isinstance(c, MIGUCallback)]
    assert callback.tasks == 2
    assert (callback.mask_fraction, callback.state()["args"]["freeze"]) == (T, "update")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_lora_of_peft(tmp_path):
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["query", "value"])
    model = peft.get_peft_model(make_model(), config)
    migu = MIGUCallback(0.5, skip_tasks=0, freeze="update")
    watch = Watch(migu)
    train(tmp_path, model, make_task(), migu, watch)
    assert len(watch.masks[-1]) == 4  # A and the combined output, of two modules
    for mask, (before, after) in zip(watch.masks, watch.steps, strict=True):
        for name, kept in mask.items():
            key = f"{name}.weight" if "lora_A" in name else f"{name}.lora_B.default.weight"
            assert not (before[key] != after[key]).any(1)[~kept].any()


def test_what_it_cannot_hold_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"mask_fraction must be a number in \[0, 1\), got 1.0"):
        MIGUCallback(1.0)
    with pytest.raises(ValueError, match="skip_tasks must be a whole number >= 0, got -1"):
        MIGUCallback(skip_tasks=-1)
    with pytest.raises(ValueError, match="target_modules"):
        train(tmp_path, make_model(), make_task(), MIGUCallback(target_modules=["querry"]))
    with pytest.raises(ValueError, match="torch_compile=True"):
        train(tmp_path, make_model(), make_task(), MIGUCallback(), torch_compile=True)


def test_sharded_parameters_are_refused(tmp_path, monkeypatch):
    class Sharded(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            for shared in (PartialState._shared_state, AcceleratorState._shared_state):
                monkeypatch.setitem(shared, "distributed_type", DistributedType.FSDP)

    with pytest.raises(ValueError, match="whole parameters in every process, got FSDP"):
        train(tmp_path, make_model(), make_task(), Sharded(), MIGUCallback())


def test_what_is_missing_is_said_with_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.delitem(sys.modules, "avalanche_mgem.huggingface.callback", raising=False)
    monkeypatch.delitem(vars(huggingface), "MIGUCallback", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'avalanche-mgem\[hf\]'"):
        _ = huggingface.MIGUCallback
    with pytest.raises(AttributeError, match="has no attribute 'MIGUCallbak'"):
        _ = huggingface.MIGUCallbak


@pytest.mark.skipif(
    int(transformers.__version__.split(".")[0]) < 5, reason="older ones divide by the batches"
)
@pytest.mark.parametrize(("accepts", "ratio"), [(None, 4.0), (False, 1.0)])
def test_accumulated_gradients_are_as_many_times_as_long_and_masks_the_same(
    tmp_path, accepts, ratio
):
    """The Trainer counts on a loss that is divided by num_items_in_batch, which this one is not."""
    norms, masks = [], []

    class Told(Trainer):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            if accepts is not None:
                self.model_accepts_loss_kwargs = accepts

    for size, accumulated in ((8, 1), (2, 4)):
        migu, watch = MIGUCallback(T, skip_tasks=0), Watch()
        found = []
        watch.on_pre_optimizer_step = lambda *arguments, found=found, **options: found.extend(
            p.grad.flatten() for p in options["model"].parameters() if p.grad is not None
        )
        train(
            tmp_path,
            make_model(),
            make_task(length=7),
            watch,
            migu,
            trainer=Told,
            max_steps=1,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulated,
            max_grad_norm=0.0,
        )
        norms.append(float(torch.cat(found).norm()))
        masks.append(migu.last_mask)
    assert norms[1] / norms[0] == pytest.approx(ratio, rel=1e-4)
    assert same(*masks)


class TwoPasses(Trainer):
    """Adversarial training: a second backward pass in each step, from a step on."""

    first = 0

    def training_step(self, model, inputs, *arguments, **keywords):
        loss = super().training_step(model, inputs, *arguments, **keywords)
        if self.state.global_step >= self.first:
            super().training_step(model, inputs, *arguments, **keywords)
        return loss


class LaterTwoPasses(TwoPasses):
    """The second pass begins in the third step."""

    first = 2


def run_path(tmp_path, trainer=Trainer, freeze="gradient", **settings):
    """The parameters after a training, and the paths of its steps."""
    model, migu, paths = make_model(), MIGUCallback(T, skip_tasks=0, freeze=freeze), []

    class Note(TrainerCallback):
        def on_pre_optimizer_step(self, *arguments, **keywords):
            paths.append(migu.last_path[LAYER])

    train(tmp_path, model, make_task(), migu, Note(), trainer=trainer, **settings)
    return model.state_dict(), paths


FIRST = "masked: the first step of this training"


@pytest.fixture
def whatever_the_size(monkeypatch):
    """Let the tiniest layer leave rows out."""
    monkeypatch.setattr(kept_gradients, "_A_MOVE", 0)
    monkeypatch.setattr(kept_gradients, "_A_CALL", -1)


@pytest.mark.usefixtures("whatever_the_size")
@pytest.mark.parametrize("freeze", ["gradient", "update"])
def test_gradients_of_masked_rows_are_left_out_where_nobody_needs_them(tmp_path, freeze):
    ours, paths = run_path(tmp_path, freeze=freeze, max_grad_norm=0.0)
    assert paths[0].startswith("masked: ")
    assert paths[1:] == ["fused"] * 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept_gradients, "why_whole", lambda *arguments: "asked for")
        others, paths = run_path(tmp_path, freeze=freeze, max_grad_norm=0.0)
    assert paths[1:] == ["masked: asked for"] * 3
    for name, value in others.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("whatever_the_size")
@pytest.mark.parametrize(
    ("trainer", "settings", "reason"),
    [
        (Trainer, {}, "max_grad_norm, which is of all rows"),
        (Trainer, {"gradient_accumulation_steps": 2}, "gradient_accumulation_steps"),
        (TwoPasses, {"max_grad_norm": 0.0}, "several forward passes in a step"),
        (Trainer, {"max_grad_norm": 0.0, CHECKPOINTING: True}, "activation checkpointing"),
    ],
    ids=["norm", "accumulation", "two passes", "checkpointing"],
)
def test_whole_gradients_are_computed_where_they_are_needed(tmp_path, trainer, settings, reason):
    _, paths = run_path(tmp_path, trainer, **settings)
    assert "fused" not in paths
    assert reason in paths[-1]


@pytest.mark.usefixtures("whatever_the_size")
def test_a_second_pass_that_comes_later_is_warned_of_and_ends_it(tmp_path):
    with pytest.warns(UserWarning, match="a second forward pass began after a backward pass"):
        _, paths = run_path(tmp_path, LaterTwoPasses, max_grad_norm=0.0)
    several = "masked: several forward passes before one mask"
    assert paths[1:] == ["fused", several, several]
