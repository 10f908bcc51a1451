import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data._utils.pin_memory import pin_memory

from avalanche_mgem.bridge.fields import joined, own_storage, samples_of, to_device
from avalanche_mgem.streams.text import Features, PadToLongest, TextBatch, Tokens
from avalanche_mgem.streams.text.batches import TokenSamples, padded_share, padding_of

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=6)


def samples(lengths, task=3):
    return [
        [
            {"input_ids": torch.arange(1, n + 1), "attention_mask": torch.ones(n).long()},
            n % 4,
            task,
        ]
        for n in lengths
    ]


@given(lengths=LENGTHS, side=st.sampled_from(["right", "left"]), multiple_of=st.integers(1, 8))
def test_padding_is_as_little_as_may_be_and_is_masked(lengths, side, multiple_of):
    collate = PadToLongest({"input_ids": 77}, side=side, multiple_of=multiple_of)
    batch = collate(samples(lengths))
    ids, mask = batch["input_ids"], batch["attention_mask"]
    width = -(-max(lengths) // multiple_of) * multiple_of
    assert ids.shape == mask.shape == (len(lengths), width)
    for row, used, n in zip(ids, mask.bool(), lengths, strict=True):
        assert row[used].tolist() == list(range(1, n + 1))
        assert set(row[~used].tolist()) <= {77}
        assert bool(used[0 if side == "right" else -1])
    assert padded_share([batch]) == pytest.approx(1 - sum(lengths) / ids.numel())


def test_a_batch_answers_by_name_and_by_position():
    batch = PadToLongest()(samples([2, 5]))
    features, labels, tasks = batch
    assert isinstance(batch, list)
    assert len(batch) == 3
    assert batch[0] is features
    assert batch["labels"] is batch[1] is labels
    assert batch["task_labels"] is batch[-1] is tasks
    assert batch["input_ids"] is features["input_ids"]
    assert labels.tolist() == [2, 1]
    assert tasks.tolist() == [3, 3]
    assert batch.keys() == ["input_ids", "attention_mask", "labels", "task_labels"]
    assert "labels" in batch
    assert "input_ids" in batch
    assert "logits" not in batch
    assert dict(batch)["attention_mask"].shape == (2, 5)
    assert dict(**batch).keys() == set(batch.keys())
    with pytest.raises(KeyError, match="logits"):
        batch["logits"]


def test_task_labels_are_zero_where_samples_have_none():
    pairs = [sample[:2] for sample in samples([1, 2])]
    assert PadToLongest()(pairs)["task_labels"].tolist() == [0, 0]


def test_features_move_as_tensors_do():
    batch = PadToLongest()(samples([2, 5]))
    for i in range(len(batch)):  # as Avalanche unpacks a batch
        batch[i] = batch[i].to(torch.device("meta"), non_blocking=True)
    assert isinstance(batch[0], Features)
    assert all(batch[name].device.type == "meta" for name in batch.keys())  # noqa: SIM118


@pytest.mark.parametrize(
    "clone", [copy.copy, copy.deepcopy, lambda batch: pickle.loads(pickle.dumps(batch))]
)
def test_batches_can_be_copied_and_pickled(clone):
    batch = PadToLongest()(samples([2, 5]))
    cloned = clone(batch)
    assert isinstance(cloned, TextBatch)
    assert isinstance(cloned[0], Features)
    assert all(torch.equal(batch[name], cloned[name]) for name in batch.keys())  # noqa: SIM118


def test_pinned_batches_are_batches(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *device: tensor + 1)
    batch = PadToLongest()(samples([2, 5]))
    pinned = pin_memory(batch)
    assert isinstance(pinned, TextBatch)
    assert isinstance(pinned[0], Features)
    assert all(torch.equal(pinned[name], batch[name] + 1) for name in batch.keys())  # noqa: SIM118


def test_the_bridge_moves_cuts_and_joins_batches():
    batch = PadToLongest()(samples([2, 5, 3]))
    for made in (to_device(batch, None), own_storage(batch)):
        assert isinstance(made, TextBatch)
        assert isinstance(made[0], Features)
    part = samples_of(batch, slice(1, 3), 3)
    assert part["labels"].tolist() == [1, 3]
    assert joined([part, part])["input_ids"].shape == (4, 5)


def test_padding_is_what_the_tokenizer_says():
    class Tokenizer:
        pad_token_id, pad_token_type_id, padding_side = 9, 4, "left"

    features = {
        name: torch.ones(1).long() for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    longer = {name: torch.ones(2).long() for name in features}
    batch = padding_of(Tokenizer())([[features, 0, 0], [longer, 0, 0]])
    first = {name: batch[name][0].tolist() for name in features}
    assert first == {"input_ids": [9, 1], "attention_mask": [0, 1], "token_type_ids": [4, 1]}
    assert padding_of(Tokenizer(), side="right").side == "right"
    assert padding_of(print) == padding_of(type("NoPad", (), {"pad_token_id": None})())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"side": "top"}, "side: unknown 'top'"), ({"multiple_of": 0}, "multiple_of must be")],
)
def test_padding_that_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PadToLongest(**arguments)


@given(lengths=LENGTHS)
def test_samples_by_length_are_the_same_samples_sorted(lengths):
    flat = {"input_ids": np.concatenate([np.full(n, n) for n in lengths]).astype(np.int32)}
    tokens = Tokens(np.array(lengths, dtype=np.int32), flat)
    labels = [n + 100 for n in lengths]
    plain, ordered = (
        TokenSamples(tokens, labels, PadToLongest(), by_length=flag) for flag in (False, True)
    )
    assert plain.labels == labels
    assert ordered.labels == sorted(labels)
    for part in (plain, ordered):
        for i in range(len(part)):
            features, label = part[i]
            assert features["input_ids"].tolist() == [label - 100] * (label - 100)
            assert label == part.labels[i]


def test_labels_must_be_as_many_as_texts():
    tokens = Tokens(np.array([1], np.int32), {"input_ids": np.array([1], np.int32)})
    with pytest.raises(ValueError, match="got 1 texts and 2 labels"):
        TokenSamples(tokens, [0, 1], PadToLongest())
