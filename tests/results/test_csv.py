"""CSV files of runs say all that the runs do."""

import csv
import json
import math
import os
import stat

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_results import make, make_many

from avalanche_mgem.files import write_atomically
from avalanche_mgem.results.csv import write_accuracy_csv, write_csv

SCORES = ["acc", "bwt", "la", "fwt", "forgetting"]
FURTHER = ["aia", "min_acc", "wc_acc", "acc_task_il"]


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


text = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=8)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | text | st.lists(st.integers())
trees = st.dictionaries(
    st.text("abc", min_size=1, max_size=2),
    st.recursive(leaves, lambda x: st.dictionaries(st.text("de", min_size=1), x), max_leaves=4),
)


def leaf(tree, dotted):
    for key in dotted.split("."):
        if not isinstance(tree, dict) or key not in tree:
            return math.nan
        tree = tree[key]
    return tree


@settings(max_examples=60, deadline=None)
@given(st.lists(trees, min_size=1, max_size=3), text, st.floats())
def test_csv_parses_back(tmp_path_factory, trees, method, seconds):
    path = tmp_path_factory.mktemp("csv") / "runs.csv"
    results = [
        make(method, i, configuration=tree, seconds=seconds, restriction={"share": 1 / 3})
        for i, tree in enumerate(trees)
    ]
    write_csv(results, path)
    rows = read(path)
    assert len(rows) == len(results)
    for row, run in zip(rows, results, strict=True):
        assert (row["method"], row["seed"]) == (method, str(run.seed))
        expected = {**run.scores, "seconds": seconds, "restriction.share": 1 / 3}
        for name, value in expected.items():
            np.testing.assert_equal(float(row[name] or "nan"), value)
        for name in [name for name in row if name.startswith("configuration.")]:
            check_leaf(row[name], leaf(run.configuration, name.removeprefix("configuration.")))


def check_leaf(cell, value):
    if isinstance(value, str):
        assert cell == value
    elif isinstance(value, float):
        np.testing.assert_equal(float(cell or "nan"), value)
    elif not isinstance(value, dict) or cell:
        assert json.loads(cell) == value


def test_columns_are_the_union_in_a_fixed_order(tmp_path):
    first = make(configuration={"optimizer": {"lr": 0.1}, "method": "gem", "hidden": [8, 8]})
    second = make(
        seed=1,
        configuration={"batch": 10, "optimizer": {}},
        versions={"torch": "2.4"},
        metrics={"distance": 0.5},
        restriction={"violated": np.float64(0.1)},
    )
    orders = []
    for name, results in [("a", [first, second]), ("b", [second, first])]:
        write_csv(results, tmp_path / name)
        orders.append(list(read(tmp_path / name)[0]))
    assert orders[0] == orders[1]
    assert orders[0] == [
        *["method", "stream", "seed", *SCORES, "seconds", *FURTHER, "diverged"],
        "restriction.violated",
        *["configuration.batch", "configuration.hidden", "configuration.method"],
        *["configuration.optimizer", "configuration.optimizer.lr", "versions.torch"],
        "metrics.distance",
    ]
    rows = read(tmp_path / "a")
    assert rows[0]["restriction.violated"] == rows[0]["versions.torch"] == ""
    assert rows[1]["restriction.violated"] == "0.1"
    assert rows[0]["configuration.hidden"] == "[8, 8]"


def test_accuracy_csv_is_the_matrix_without_its_holes(tmp_path):
    results = make_many()
    results[0].accuracy[np.triu_indices(3, 1)] = np.nan
    write_accuracy_csv(results, tmp_path / "accuracy.csv")
    matrices = {(run.method, run.seed): np.full((3, 3), np.nan) for run in results}
    rows = read(tmp_path / "accuracy.csv")
    for row in rows:
        matrix = matrices[row["method"], int(row["seed"])]
        matrix[int(row["trained_on"]), int(row["tested_on"])] = float(row["accuracy"])
    for run in results:
        np.testing.assert_array_equal(matrices[run.method, run.seed], run.accuracy)
    assert len(rows) == 9 * len(results) - 3
    assert list(rows[0]) == ["method", "stream", "seed", "trained_on", "tested_on", "accuracy"]


@pytest.mark.parametrize("write", [write_csv, write_accuracy_csv])
def test_lines_end_in_a_line_feed_and_text_is_utf8(write, tmp_path):
    write([make("é\n,")], tmp_path / "runs.csv")
    data = (tmp_path / "runs.csv").read_bytes()
    assert b"\r" not in data
    assert data.endswith(b"\n")
    assert '"é\n,"'.encode() in data
    assert [file.name for file in tmp_path.iterdir()] == ["runs.csv"]


@pytest.mark.parametrize("write", [write_csv, write_accuracy_csv])
def test_no_runs_write_no_file(write, tmp_path):
    with pytest.raises(ValueError, match="results must hold at least one run"):
        write([], tmp_path / "runs.csv")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "runs.csv"
    path.write_text("old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_csv([make()], path)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["runs.csv"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_atomically(tmp_path / "nowhere" / "file", b"")


@pytest.mark.skipif(os.name == "nt", reason="modes are POSIX")
def test_a_written_file_is_as_readable_as_any_other(tmp_path):
    (tmp_path / "other").write_bytes(b"")
    write_atomically(tmp_path / "file", b"data")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("file", "other")]
    assert modes[0] == modes[1]
