"""mGEM under transformers' Trainer, against MGEMPlugin, plain Trainers and slow references."""

import copy
import json
import pickle
import random

import numpy as np
import peft
import pytest
import torch
import transformers
from avalanche.training.supervised import Naive
from tiny import make_strategy
from torch.nn.functional import cross_entropy
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

from avalanche_mgem import MGEMPlugin
from avalanche_mgem.bridge.fields import plain
from avalanche_mgem.huggingface import MGEMCallback, MIGUCallback, with_dict_batches
from avalanche_mgem.huggingface.calling import calling_trainer
from avalanche_mgem.model.partition import make_partition
from avalanche_mgem.restriction import ConstantSchedule, PolyakStrength

pytestmark = KNOWN_WARNINGS

SGD = {"optim": "sgd", "learning_rate": 0.3, "weight_decay": 0.0, "max_grad_norm": 0.0}


def moving(model):
    return [p for p in model.parameters() if p.requires_grad]


def vector(model):
    return torch.cat([p.detach().flatten() for p in moving(model)]).clone()


def slow_rows(model, groups):
    """The gradient of the mean cross-entropy on each group, one after the other."""
    rows = []
    for group in groups:
        batch = dict(group.batch)
        labels = batch.pop("labels")
        loss = cross_entropy(model(**batch).logits, labels)
        found = torch.autograd.grad(loss, moving(model), allow_unused=True)
        parts = zip(moving(model), found, strict=True)
        rows.append(torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten()
                               for p, g in parts]))  # fmt: skip
    return torch.stack(rows)


class Note(TrainerCallback):
    """Notes the rows that a step begins with, and where it leads; listed after the callback."""

    def __init__(self, mgem):
        self.mgem, self.rows, self.steps, self.projections = mgem, [], [], []
        self.start = None

    def on_step_begin(self, args, state, control, **kwargs):
        self.start = vector(kwargs["model"])
        self.rows.append(self.mgem._matrix.rows.clone())

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.steps.append(self.start - vector(kwargs["model"]))
        self.projections.append(self.mgem.last_projection)


@pytest.mark.parametrize("memory_groups", [1, 3])
def test_rows_are_those_of_the_plugin_on_the_same_exemplars(tmp_path, memory_groups):
    model, mgem = make_model(), MGEMCallback(7, memory_groups=memory_groups, seed=3)
    note = Note(mgem)
    train(tmp_path / "0", model, make_task(), mgem)
    copied = copy.deepcopy(model)
    train(tmp_path / "1", model, make_task(1), mgem, note, max_steps=1)
    groups = mgem.memory.closed_groups()[:memory_groups]
    assert [group.size for group in groups] == {1: [7], 3: [3, 2, 2]}[memory_groups]

    plugin = MGEMPlugin(7, memory_groups=memory_groups)
    strategy = make_strategy(copied.train(), [plugin], strategy=with_dict_batches(Naive))
    plugin._compute_rows(strategy, groups, experience=1, iteration=0)
    assert note.rows[0].shape == plugin._matrix.rows.shape
    torch.testing.assert_close(note.rows[0], plugin._matrix.rows, rtol=0, atol=1e-6)
    expected = slow_rows(copied, groups)
    torch.testing.assert_close(note.rows[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize(
    ("restrict", "settings"),
    [("gradient", SGD), ("update", {"learning_rate": 0.05})],
    ids=["gradient under SGD", "update under AdamW"],
)
@pytest.mark.parametrize("parameter_groups", [1, "layer"])
def test_no_step_harms_the_memory(tmp_path, restrict, settings, accumulated, parameter_groups):
    """<step, row> >= 0 in every module, but for the ridge; gradients alone would do harm."""
    model = make_model()
    mgem = MGEMCallback(
        6, 0.0, memory_groups=2, restrict=restrict, parameter_groups=parameter_groups, seed=0
    )
    note = Note(mgem)
    settings = {**settings, "gradient_accumulation_steps": accumulated, "max_steps": 6}
    for number in range(3):
        train(tmp_path / str(number), model, make_task(number), mgem, note, **settings)
    violated = 0
    modules = make_partition(model, parameter_groups).slices
    for rows, step, projection in zip(note.rows, note.steps, note.projections, strict=True):
        if projection is None:
            continue
        violated += int(projection.violated)
        for module in modules:
            at = torch.cat([torch.arange(s.start, s.stop) for s in module])
            for row in rows[:, at]:
                size = float(row.norm() * step[at].norm())
                rounding = 1e-6 * float(row.norm())  # of the parameters, which are about 1
                assert float(row @ step[at]) >= -1e-4 * size - rounding
    assert violated > 3
    assert [len(rows) for rows in note.rows] == [0] * 6 + [2] * 6 + [4] * 6


def random_states():
    return random.random(), np.random.rand(), float(torch.rand(()))


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("restrict", ["gradient", "update"])
def test_without_exemplars_it_is_the_plain_trainer_to_the_bit(tmp_path, restrict, accumulated):
    """Dropout and the order of the samples are the same too: no global random number is drawn."""
    ends, states = [], []
    for callbacks in ([], [MGEMCallback(5, "auto", restrict=restrict, seed=0)]):
        model = make_model(hidden_dropout_prob=0.2)
        train(tmp_path, model, make_task(), *callbacks, gradient_accumulation_steps=accumulated)
        ends.append(model.state_dict())
        states.append(random_states())
    assert same(*ends)
    assert states[0] == states[1]


class Shaken:
    """A collate function with random numbers of its own, which it makes in its first call."""

    def __init__(self):
        self.generator = None

    def __call__(self, samples):
        if self.generator is None:
            self.generator = torch.Generator().manual_seed(0)
        batch = transformers.default_data_collator(samples)
        shift = torch.randint(0, 2, batch["input_ids"].shape, generator=self.generator)
        return {**batch, "input_ids": (batch["input_ids"] - shift).clamp(min=1)}


def test_a_collate_functions_own_random_numbers_stay_as_they_are(tmp_path):
    ends = []
    for callbacks in ([], [MGEMCallback(5, seed=0)]):
        model = make_model()
        trainer = train(tmp_path, model, make_task(), *callbacks, collate=Shaken())
        ends.append((vector(model), trainer.data_collator.generator.get_state()))
    assert torch.equal(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][1], ends[1][1])


class Pairs(Trainer):
    """Its batches are tuples."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        x, y = inputs
        loss = cross_entropy(model(input_ids=x).logits, y)
        return (loss, None) if return_outputs else loss


def test_batches_that_are_tuples_and_fields_of_numpy_are_kept(tmp_path):
    def pairs(samples):
        batch = transformers.default_data_collator(samples)
        return batch["input_ids"], batch["labels"]

    model, mgem = make_model(), MGEMCallback(4, 0.0, seed=0)
    for task in (make_task(), make_task()):
        train(tmp_path, model, task, mgem, trainer=Pairs, collate=pairs)
    assert mgem.last_projection.dots.isfinite().all()
    assert torch.equal(plain({"a": np.arange(3)})["a"], torch.arange(3))


def test_rows_and_memory_draw_from_no_global_random_state(tmp_path):
    """With a strength of zero and no harm to be done, the second task is the plain Trainer's."""
    ends = []
    for callbacks in ([], [MGEMCallback(5, 0.0, memory_batch_size=2, seed=0)]):
        model = make_model(hidden_dropout_prob=0.2)
        for number in range(2):  # the same task: gradients agree at a small rate
            train(tmp_path / str(number), model, make_task(), *callbacks, **SGD | {"max_steps": 2})
        ends.append((random_states(), len(callbacks)))
    assert ends[0][0] == ends[1][0]


def saved(folder, model, mgem, task, **settings):
    return train(folder, model, task, mgem, save_strategy="steps", save_steps=2, **settings)


RESUMED = [
    {"restrict": "update", "memory_strength": "auto", "memory_batch_size": 2},
    {"restrict": "gradient", "parameter_groups": "layer", "memory_groups": 2},
]


@pytest.mark.parametrize("how", ["restored by the Trainer", "loaded"])
@pytest.mark.parametrize("arguments", RESUMED, ids=["update", "gradient"])
def test_a_resumed_trainer_is_the_uninterrupted_one_to_the_bit(tmp_path, arguments, how):
    """The second of three tasks is broken off after two steps, by a process that is gone."""
    whole, mgem = make_model(hidden_dropout_prob=0.1), MGEMCallback(6, seed=1, **arguments)
    train(tmp_path / "0", whole, make_task(), mgem)
    saved(tmp_path / "1", whole, mgem, make_task(1))
    train(tmp_path / "2", whole, make_task(2), mgem)

    checkpoint = str(tmp_path / "1" / "checkpoint-2")
    resumed = make_model(hidden_dropout_prob=0.1)
    options = {"resume": checkpoint}
    if how == "loaded":
        mgem = MGEMCallback(6, seed=99, **arguments)
        mgem.load(checkpoint)
    else:
        mgem = MGEMCallback(1)
        options["restore_callback_states_from_checkpoint"] = True
    trainer = train(tmp_path / "3", resumed, make_task(1), mgem, **options)
    (mgem,) = [c for c in trainer.callback_handler.callbacks if isinstance(c, MGEMCallback)]
    assert (mgem.tasks, mgem.steps, len(mgem.memory)) == (2, 8, 2)
    train(tmp_path / "4", resumed, make_task(2), mgem)
    assert same(resumed.state_dict(), whole.state_dict())


def test_numbers_of_numpy_are_kept_as_pythons_own():
    mgem = MGEMCallback(np.int64(6), np.float32(0.5), memory_batch_size=np.uint8(2), ridge=0.1)
    state = json.loads(json.dumps(mgem.state()))
    again = MGEMCallback(**state["args"])
    assert again.state()["args"] == state["args"]
    assert state["attributes"]["objects"] == []


def test_arguments_that_are_objects_are_not_restored_but_loaded(tmp_path):
    strength = PolyakStrength(maximum=0.5)
    mgem = MGEMCallback(6, strength, seed=1)
    train(tmp_path / "0", make_model(), make_task(), mgem)
    saved(tmp_path / "1", make_model(), mgem, make_task(1))
    checkpoint = str(tmp_path / "1" / "checkpoint-4")
    options = {"resume": checkpoint, "max_steps": 6}
    with pytest.raises(ValueError, match=r"memory_strength: the checkpoint was made .* load\("):
        train(
            tmp_path / "2", make_model(), make_task(1), MGEMCallback(6, strength),
            restore_callback_states_from_checkpoint=True, **options,
        )  # fmt: skip
    again = MGEMCallback(6, strength)
    again.load(checkpoint)
    train(tmp_path / "3", make_model(), make_task(1), again, **options)
    assert (again.tasks, len(again.memory)) == (2, 2)
    with pytest.raises(FileNotFoundError, match=r"has no trainer_state\.json"):
        again.load(str(tmp_path))
    state = tmp_path / "trainer_state.json"
    state.write_text(json.dumps({"stateful_callbacks": {}}))
    with pytest.raises(ValueError, match="keeps nothing of a MGEMCallback"):
        again.load(str(tmp_path))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_rows_are_as_long_as_the_adapters_of_lora(tmp_path):
    config = peft.LoraConfig(r=2, target_modules=["query", "value"])
    model = peft.get_peft_model(make_model(), config)
    mgem = MGEMCallback(6, 0.5, restrict="update", seed=0)
    note, weight = Note(mgem), model.base_model.model.roberta.embeddings.word_embeddings.weight
    base = weight.clone()
    train(tmp_path / "0", model, make_task(), mgem)
    train(tmp_path / "1", model, make_task(1), mgem, note)
    trainable = sum(p.numel() for p in moving(model))
    assert trainable == 2 * (2 * 8 + 8 * 2)
    assert {rows.shape for rows in note.rows} == {(1, trainable)}
    assert torch.equal(base, weight)


def test_bf16_rows_are_computed_as_the_trainer_computes(tmp_path):
    """In torch's autocast: near those of float32, and not the same."""
    rows = []
    for bf16 in (False, True):
        model, mgem = make_model(), MGEMCallback(6, seed=0)
        mgem.memory.observe_dataset(make_task(), transformers.default_data_collator)
        mgem.memory.close_task()
        note = Note(mgem)
        train(tmp_path / str(bf16), model, make_task(1), mgem, note, max_steps=1, bf16=bf16)
        rows.append(note.rows[0])
    assert rows[1].dtype == torch.float32
    distance = float((rows[0] - rows[1]).norm() / rows[0].norm())
    assert 1e-5 < distance < 0.05


class Doubled(Trainer):
    """A loss of its own."""

    def compute_loss(self, model, inputs, **kwargs):
        return 2 * super().compute_loss(model, inputs, **kwargs)


def by_items(outputs, labels, num_items_in_batch=None):
    """What transformers asks of a loss function of one's own: a sum over the number of items."""
    return cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch


def smoothed(outputs, labels):
    """Label smoothing as transformers defines it: (1 - e) CE + e * mean over classes."""
    return cross_entropy(outputs.logits, labels, label_smoothing=0.2)


@pytest.mark.parametrize(
    ("make", "settings", "loss"),
    [
        (Doubled, {}, lambda outputs, labels: 2 * cross_entropy(outputs.logits, labels)),
        (Trainer, {"label_smoothing_factor": 0.2}, smoothed),
        (
            lambda **options: Trainer(compute_loss_func=by_items, **options),
            {"gradient_accumulation_steps": 2},
            lambda outputs, labels: cross_entropy(outputs.logits, labels),
        ),
    ],
    ids=["compute_loss", "label smoothing", "compute_loss_func"],
)
def test_rows_are_of_the_trainers_own_loss(tmp_path, make, settings, loss):
    model, mgem = make_model(), MGEMCallback(6, seed=0)
    note = Note(mgem)
    train(tmp_path / "0", model, make_task(), mgem, trainer=make, **settings)
    copied = copy.deepcopy(model)
    train(
        tmp_path / "1", model, make_task(1), mgem, note, trainer=make, **settings | {"max_steps": 1}
    )
    batch = dict(mgem.memory.closed_groups()[0].batch)
    labels = batch.pop("labels")
    found = torch.autograd.grad(loss(copied(**batch), labels), moving(copied), allow_unused=True)
    expected = torch.cat([(torch.zeros_like(p) if g is None else g).flatten()
                          for p, g in zip(moving(copied), found, strict=True)])  # fmt: skip
    torch.testing.assert_close(note.rows[0][0], expected, rtol=0, atol=1e-6)


def test_the_gradient_is_clipped_before_it_is_projected(tmp_path):
    norms = []

    class Norm(TrainerCallback):
        def on_pre_optimizer_step(self, *arguments, **keywords):
            norms.append(float(torch.cat([p.grad.flatten() for p in moving(keywords["model"])
                                          if p.grad is not None]).norm()))  # fmt: skip

    model, mgem = make_model(), MGEMCallback(6, 1.0, seed=0)
    settings = {**SGD, "max_grad_norm": 0.1}
    train(tmp_path / "0", model, make_task(), mgem, **settings)
    train(tmp_path / "1", model, make_task(1), Norm(), mgem, Norm(), **settings)
    assert all(norm <= 0.1 + 1e-6 for norm in norms[0::2])
    assert max(norms[1::2]) > 0.1  # the push is not clipped


def test_a_seq2seq_trainer_is_a_trainer(tmp_path):
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=40, d_model=8, d_kv=4, d_ff=10, num_layers=1, num_heads=2, dropout_rate=0.0,
        decoder_start_token_id=0,
    )  # fmt: skip
    model, mgem = transformers.T5ForConditionalGeneration(config), MGEMCallback(6, "auto", seed=0)

    def seq2seq(args, **options):
        kept = {k: v for k, v in vars(args).items() if k in ("output_dir", "max_steps", "use_cpu")}
        own = transformers.Seq2SeqTrainingArguments(
            **kept, save_strategy="no", report_to="none", disable_tqdm=True, optim="sgd"
        )
        return transformers.Seq2SeqTrainer(args=own, **options)

    for number in range(2):
        task = [{"input_ids": s["input_ids"], "labels": s["input_ids"].flip(0)}
                for s in make_task(number)]  # fmt: skip
        train(tmp_path / str(number), model, task, mgem, trainer=seq2seq)
    assert (mgem.tasks, mgem.steps) == (2, 8)
    assert mgem.last_projection is not None


def test_nothing_is_left_on_the_model_and_the_callback_pickles(tmp_path):
    model, mgem = make_model(), MGEMCallback(6, restrict="update", seed=0)

    class Failing(Trainer):
        def training_step(self, *arguments, **keywords):
            raise RuntimeError("out of memory")

    train(tmp_path / "0", model, make_task(), mgem)
    with pytest.raises(RuntimeError, match="out of memory"):
        train(tmp_path / "1", model, make_task(1), mgem, trainer=Failing)
    assert (mgem.tasks, hooks_of(model)) == (1, 0)  # a task that failed is not over
    again = pickle.loads(pickle.dumps(mgem))
    train(tmp_path / "2", model, make_task(1), again)
    assert again.tasks == 2
    assert hooks_of(model) == 0
    assert all(
        group.batch["input_ids"].device.type == "cpu" for group in again.memory.closed_groups()
    )


class Half(TrainerCallback):
    """Stands for fp16=True, which no CPU trains in."""

    def on_train_begin(self, args, state, control, **kwargs):
        args.fp16 = True


class Launched(TrainerCallback):
    """Stands for fp16 by `accelerate launch`, which the Trainer's arguments do not say."""

    def on_train_begin(self, args, state, control, **kwargs):
        accelerator = calling_trainer(self).accelerator
        accelerator.state._mixed_precision = "fp16"


class Stream(torch.utils.data.IterableDataset):
    """Has no positions."""

    def __iter__(self):
        return iter(make_task())


def test_what_it_cannot_restrict_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match="memory_groups=3 needs at least 3 patterns per task"):
        MGEMCallback(2, memory_groups=3)
    with pytest.raises(ValueError, match="patterns_per_task must be a whole number >= 1, got 0"):
        MGEMCallback(0)
    with pytest.raises(ValueError, match="an iterable data set has none"):
        train(tmp_path, make_model(), Stream(), MGEMCallback(2))
    for half in (Half(), Launched()):
        with pytest.raises(ValueError, match="use bf16=True"):
            train(tmp_path, make_model(), make_task(), half, MGEMCallback(2))
    with pytest.raises(ValueError, match="does not go together with MIGUCallback"):
        train(tmp_path, make_model(), make_task(), MGEMCallback(2), MIGUCallback())
    with pytest.raises(ValueError, match=r"label_smoothing=0\.1 it cannot"):
        train(
            tmp_path, make_model(), make_task(), MGEMCallback(2, "auto"),
            label_smoothing_factor=0.1,
        )  # fmt: skip
    mgem = MGEMCallback(2, max_row_bytes=100)
    with pytest.raises(ValueError, match=r"more than the 0\.0 GiB there are"):
        train(tmp_path, make_model(), make_task(), mgem)
    mgem = MGEMCallback(2, parameter_groups={"a": ["nothing.*"]})
    with pytest.raises(ValueError, match="nothing"):
        train(tmp_path, make_model(), make_task(), mgem)
    with pytest.raises(RuntimeError, match="hand it to a Trainer's callbacks"):
        mgem.on_train_begin(None, None, None)


def test_a_gradient_that_is_not_finite_is_said(tmp_path):
    model, mgem = make_model(), MGEMCallback(2, ConstantSchedule(0.5), seed=0)
    train(tmp_path / "0", model, make_task(), mgem)
    torch.nn.init.constant_(model.classifier.out_proj.weight, float("inf"))
    with pytest.raises(FloatingPointError, match=r"in experience 1, iteration 0"):
        train(tmp_path / "1", model, make_task(1), mgem)
