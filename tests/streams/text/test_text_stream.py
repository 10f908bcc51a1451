import copy
import pickle

import pytest
import torch
from text_cases import WordTokenizer, batches_of, make_task, word_id, write_task

from avalanche_mgem.streams.text import TextBatch, TextTask, read_text_tasks, text_stream

WORDS = {"a": ("red", "green"), "b": ("no", "red", "yes"), "c": ("no", "yes")}
CLASSES = {
    "a head a task": ({}, [[0, 1], [0, 1, 2], [0, 1]]),
    "joint": ({"task_labels": False}, [[0, 1], [2, 3, 4], [5, 6]]),
    "shared": ({"task_labels": False, "shared_labels": True}, [[0, 1], [2, 0, 3], [2, 3]]),
    "shared, with task labels": ({"shared_labels": True}, [[0, 1], [2, 0, 3], [2, 3]]),
}


def tasks(**sizes):
    return [make_task(name, words, **sizes) for name, words in WORDS.items()]


def stream_of(tasks, **arguments):
    return text_stream(tasks, tokenizer=WordTokenizer(), **arguments)


@pytest.mark.parametrize("kind", list(CLASSES))
def test_samples_are_the_tasks_with_the_classes_of_the_kind(kind):
    arguments, classes = CLASSES[kind]
    stream = stream_of(tasks(), **arguments)
    for part in ("train", "test"):
        for i, (experience, task) in enumerate(zip(stream.streams[part], tasks(), strict=True)):
            expected = [
                ([word_id(word) for word in sample.text.split()], classes[i][sample.label])
                for sample in getattr(task, part)
            ]
            if part == "test":
                expected.sort(key=lambda pair: len(pair[0]))
            data = experience.dataset
            items = [data[j] for j in range(len(data))]
            assert [(f["input_ids"].tolist(), label) for f, label, _ in items] == expected
            assert list(data.targets) == [label for _, label in expected]
            label = i if arguments.get("task_labels", True) else 0
            assert {t for _, _, t in items} == {label} == set(data.targets_task_labels)
            assert (experience.task_label, experience.task_labels) == (label, [label])
            assert experience.classes_in_this_experience == sorted(classes[i])
            assert experience.task_name == task.name
            assert experience.label_words == dict(zip(classes[i], WORDS[task.name], strict=True))


def test_class_timelines_are_sorted_lists():
    stream = stream_of(tasks(), task_labels=False)
    second = stream.train_stream[1]
    assert second.previous_classes == [0, 1]
    assert second.classes_seen_so_far == [0, 1, 2, 3, 4]
    assert second.future_classes == [5, 6]


def test_batches_are_padded_to_their_longest_and_keep_what_is_not_padding():
    stream = stream_of(tasks(), max_length=6)
    for experience in [*stream.train_stream, *stream.test_stream]:
        rows = []
        for batch in batches_of(experience.dataset):
            assert isinstance(batch, TextBatch)
            lengths = batch["attention_mask"].sum(1)
            assert batch["input_ids"].shape[1] == int(lengths.max()) <= 6
            rows += [ids[ids > 0].tolist() for ids in batch["input_ids"]]
        data = experience.dataset
        assert rows == [data[i][0]["input_ids"].tolist() for i in range(len(data))]


def test_subsets_and_joined_sets_make_batches_too():
    stream = stream_of(tasks())
    first, second = (experience.dataset for experience in stream.train_stream[:2])
    both = first.subset([0, 5, 7]).concat(second.eval().subset([1]))
    (batch,) = batches_of(both)
    assert isinstance(batch, TextBatch)
    assert batch["task_labels"].tolist() == [0, 0, 0, 1]


def test_a_folder_gives_what_its_tasks_in_memory_give(tmp_path):
    for task in tasks():
        write_task(tmp_path, task, compressed=task.name == "b")
    read = stream_of("c,a", folder=tmp_path, cache_folder=tmp_path / "cache")
    held = stream_of([tasks()[2], tasks()[0]])
    for left, right in zip(read.train_stream, held.train_stream, strict=True):
        pairs = zip(batches_of(left.dataset), batches_of(right.dataset), strict=True)
        assert all(torch.equal(x[name], y[name]) for x, y in pairs for name in x.keys())  # noqa: SIM118
    assert len(list((tmp_path / "cache").iterdir())) == 4
    assert [task.name for task in read_text_tasks("c,a", folder=tmp_path)] == ["c", "a"]


def test_a_task_has_the_same_samples_wherever_it_comes():
    sizes = {"train_per_task": 8, "test_per_task": 5, "seed": 2}
    first, second = stream_of(tasks(), **sizes), stream_of(tasks()[::-1], **sizes)
    for left, right in zip(first.train_stream, reversed(list(second.train_stream)), strict=True):
        assert len(left.dataset) == len(right.dataset) == 8
        for i in range(8):
            features, label, _ = left.dataset[i]
            assert torch.equal(features["input_ids"], right.dataset[i][0]["input_ids"])
            assert label == right.dataset[i][1]


def test_pairs_of_texts_are_tokenised_as_pairs():
    stream = stream_of([make_task("p", pairs=True)])
    features, _, _ = stream.train_stream[0].dataset[0]
    assert features["input_ids"].tolist()[-3:] == [word_id(w) for w in ("the", "second", "0")]


def test_the_side_of_padding_can_be_chosen():
    left = stream_of(tasks()[:1], padding_side="left").train_stream[0].dataset
    batch = batches_of(left)[0]
    assert bool((batch["attention_mask"][:, -1] == 1).all())
    assert not bool((batch["attention_mask"][:, 0] == 1).all())


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda stream: pickle.loads(pickle.dumps(stream))]
)
def test_streams_can_be_copied_and_pickled(clone):
    stream = stream_of(tasks(n_train=6, n_test=6))
    for left, right in zip(stream.train_stream, clone(stream).train_stream, strict=True):
        assert right.task_name == left.task_name
        pairs = zip(batches_of(left.dataset), batches_of(right.dataset), strict=True)
        assert all(torch.equal(x["input_ids"], y["input_ids"]) for x, y in pairs)


def test_building_and_reading_leave_the_random_state_alone():
    before = torch.get_rng_state()
    for experience in stream_of(tasks(), train_per_task=8).train_stream:
        batches_of(experience.dataset)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_length": 0}, "max_length must be a whole number >= 1"),
        ({"train_per_task": 1}, "train_per_task=1 is less than the 2 labels of 'a'"),
        ({"seed": -1}, "seed must be a whole number >= 0"),
        ({"padding_side": "up"}, "side: unknown 'up'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        stream_of(tasks(), **arguments)


def test_a_task_in_memory_is_taken_beside_those_of_a_folder(tmp_path):
    write_task(tmp_path, tasks()[0])
    own = TextTask("mine", ("x", "y"), *(make_task(words="xy").train for _ in range(2)))
    stream = stream_of(["a", own], folder=tmp_path)
    assert [e.task_name for e in stream.test_stream] == ["a", "mine"]
