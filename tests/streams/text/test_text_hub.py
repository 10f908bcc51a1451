import sys
from string import Formatter
from types import SimpleNamespace

import pytest
from text_cases import WordTokenizer

from avalanche_mgem.streams.text import (
    HUB_TASKS,
    TEXT_ORDERS,
    HubTask,
    TextSample,
    read_hub_task,
    text_stream,
    text_task_names,
)


def columns_of(source):
    return {field for _, field, _, _ in Formatter().parse(source.text) if field is not None}


@pytest.fixture
def hub(monkeypatch):
    """A module `datasets` that has every task of the table, and notes what is asked of it."""
    asked = []

    def load_dataset(path, config, *, split):
        asked.append((path, config, split))
        source = next(s for s in HUB_TASKS.values() if (s.path, s.config) == (path, config))
        for i in range(3 * len(source.words)):
            row = {column: f"{column} {i}" for column in columns_of(source)}
            yield {**row, source.label: i % len(source.words), "idx": i}

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return asked


def test_the_table_has_all_tasks():
    assert tuple(sorted(HUB_TASKS)) == text_task_names()
    for source in HUB_TASKS.values():
        assert len(set(source.words)) == len(source.words) >= 2
        assert columns_of(source)
        assert source.train != source.test


@pytest.mark.parametrize("name", text_task_names())
def test_rows_become_samples_by_the_table(hub, name):
    task, source = read_hub_task(name), HUB_TASKS[name]
    assert hub == [(source.path, source.config, split) for split in (source.train, source.test)]
    assert (task.name, task.label_words) == (name, source.words)
    first = {column: f"{column} 0" for column in columns_of(source)}
    assert task.train[0] == TextSample(source.text.format(**first), 0)
    assert [s.label for s in task.test] == [i % len(source.words) for i in range(len(task.test))]


def test_without_a_folder_a_stream_is_read_from_the_hub(hub):
    stream = text_stream("1", tokenizer=WordTokenizer(), max_length=8)
    assert [e.task_name for e in stream.train_stream] == list(TEXT_ORDERS["1"])
    assert len(hub) == 8


def test_a_table_of_ones_own(monkeypatch):
    def load_dataset(path, config, split):
        rows = [("good", 1), ("bad", 0), ("hidden", -1)]
        return [{"t": f"{text} {split}", "y": label} for text, label in rows]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    table = {"mine": HubTask("me/mine", None, ("no", "yes"), "{t}", label="y")}
    task = read_hub_task("mine", table=table)
    assert task.train == [TextSample("good train", 1), TextSample("bad train", 0)]
    stream = text_stream(["mine"], tokenizer=WordTokenizer(), hub_tasks=table)
    assert stream.train_stream[0].label_words == {0: "no", 1: "yes"}


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'avalanche-mgem\[hf\]'"):
        read_hub_task("rte")


def test_what_the_hub_does_not_give_is_told(monkeypatch):
    def fail(*_args, **_kwargs):
        raise ConnectionError("no\nroute")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=fail))
    message = r"task 'rte': aps/super_glue \(rte\), split 'train' cannot be had \(Conn.*no route"
    with pytest.raises(ValueError, match=message):
        read_hub_task("rte")
    with pytest.raises(ValueError, match="table has no task 'rta'; did you mean 'rte'"):
        read_hub_task("rta")


@pytest.mark.parametrize("row", [{"label": 0}, {"premise": "a", "hypothesis": "b"}])
def test_other_columns_than_the_tables_are_told(monkeypatch, row):
    module = SimpleNamespace(load_dataset=lambda *_, **__: [row])
    monkeypatch.setitem(sys.modules, "datasets", module)
    with pytest.raises(ValueError, match="split 'train' is not what the table says: KeyError"):
        read_hub_task("rte")
