"""The results folder: finished runs stay, strangers' files too."""

import numpy as np
import pytest

from avalanche_mgem.experiment import RunResult
from avalanche_mgem.results.store import ResultStore

RESULT = RunResult("naive", "s", 0, np.eye(2), np.full(2, np.nan), 1.5)


def made(folder):
    store = ResultStore(folder)
    store.create()
    return store


def test_a_saved_run_is_loaded(tmp_path):
    store = made(tmp_path / "new" / "out")
    assert store.load("key") is None
    store.save("key", RESULT)
    again = made(store.folder)
    assert again.load("key").to_json() == RESULT.to_json()
    assert again.load("another") is None
    assert [path.name for path in store.runs.iterdir()] == ["key.json"]


def test_nothing_is_made_before_it_is_asked_for(tmp_path):
    store = ResultStore(tmp_path / "out")
    assert store.load("key") is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "{", '{"method": "naive"}', "[]", '{"accuracy": 3}'])
def test_a_damaged_run_is_named_and_kept(tmp_path, content):
    store = made(tmp_path)
    path = store.runs / "key.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"key\.json is not a whole result"):
        store.load("key")
    assert path.read_text() == content


def test_a_folder_with_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match=r"out: .* holds something else"):
        ResultStore(tmp_path)
    with pytest.raises(ValueError, match="is a file; name a folder"):
        ResultStore(tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"out: .* cannot be written"):
        made(tmp_path / "file" / "out")


def test_what_a_killed_process_left_of_the_mark_is_no_obstacle(tmp_path):
    (tmp_path / f".avalanche-mgem.json.{'0123456789abcdef' * 2}.tmp").write_text("")
    assert made(tmp_path).load("key") is None


@pytest.mark.parametrize("mark", ["", "[]", '{"format": 2}'])
def test_a_mark_of_another_kind_is_refused(tmp_path, mark):
    (tmp_path / "avalanche-mgem.json").write_text(mark)
    with pytest.raises(ValueError, match=r"out: .*(damaged|in format 2)"):
        ResultStore(tmp_path)


def test_one_comparison_at_a_time(tmp_path):
    store = made(tmp_path)
    with store.locked(), pytest.raises(ValueError, match="another comparison is at work"):
        made(tmp_path).locked().__enter__()
    with made(tmp_path).locked():
        pass


def test_logs_of_an_unfinished_run_are_removed_and_no_others(tmp_path):
    store = made(tmp_path)
    for key in ("one", "two"):
        store.tensorboard(key).mkdir(parents=True)
        (store.tensorboard(key) / "events").write_text("")
        store.metrics_csv(key).parent.mkdir(exist_ok=True)
        store.metrics_csv(key).write_text("")
    store.clear_unfinished("one")
    store.clear_unfinished("three")
    assert not store.tensorboard("one").exists()
    assert not store.metrics_csv("one").exists()
    assert (store.tensorboard("two") / "events").exists()
    assert store.metrics_csv("two").exists()
