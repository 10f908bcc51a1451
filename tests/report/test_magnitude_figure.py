"""The figure of magnitudes: its files, and the points that it holds."""

import csv

import numpy as np
import pytest

from avalanche_mgem.report.figures.magnitudes import draw_magnitudes
from avalanche_mgem.theory import TwoTasks, scaled

SMALL = {"n": 6, "p": 10, "p2": 20, "shared_norm": 1.0, "specific_norm": 1.0, "noise": 0.1}


def test_the_figure_as_png_and_pdf_and_its_points(tmp_path):
    files = draw_magnitudes(tmp_path / "new", n_tasks=5, runs=60, **SMALL, distance=1.0)
    assert {file.suffix for file in files} == {".csv", ".png", ".pdf"}
    assert set((tmp_path / "new").iterdir()) == set(files)
    starts = {".png": b"\x89PNG", ".pdf": b"%PDF", ".csv": b"distance,magnitude,how"}
    assert all(file.read_bytes().startswith(starts[file.suffix]) for file in files)
    with files[0].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {float(row["distance"]) for row in rows} == {0.5, 1.0, 2.0}
    assert {row["how"] for row in rows} == {"way", "steps"}
    away = []
    for row in rows:
        if row["how"] == "steps":
            assert row["closed_form"] == ""
            continue
        tasks = TwoTasks(**SMALL, distance=float(row["distance"]))
        errors = scaled(tasks, float(row["magnitude"]))
        expected = float(errors.first + errors.second) / 2
        assert float(row["closed_form"]) == pytest.approx(expected, rel=1e-9)
        away.append((float(row["simulated"]) - expected) / float(row["standard_error"]))
    assert np.sqrt(np.mean(np.square(away))) < 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"p2": 7}, r"p2 must be > n \+ 1 in frozen training"),
        ({"n_tasks": 1}, "n_tasks must be a whole number >= 2"),
        ({"runs": 1}, "runs must be a whole number >= 2"),
    ],
)
def test_nothing_is_written_of_what_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        draw_magnitudes(tmp_path / "out", **{**SMALL, "distance": 1.0, **changes})
    assert not (tmp_path / "out").exists()
