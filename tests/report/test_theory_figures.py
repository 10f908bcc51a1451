import csv

import numpy as np
import pytest

from avalanche_mgem.report.figures.theory import draw_theory
from avalanche_mgem.theory import TwoTasks, outcome

SMALL = {"n": 6, "p": 10, "p2": 20, "runs": 30}


@pytest.fixture
def unpainted(monkeypatch):
    """Leave out what takes the time: the figures are made, but their files are empty."""
    for ending in ("png", "pdf"):
        monkeypatch.setattr(f"avalanche_mgem.report.figures.theory.{ending}", lambda _: b"")


def test_every_figure_as_png_and_pdf_and_a_table(tmp_path):
    out = tmp_path / "new" / "folder"
    files = draw_theory(out, **SMALL)
    figures = [f"theory-{name}" for name in ("trained", "p2", "distance")]
    names = {f"{name}.{ending}" for name in figures for ending in ("png", "pdf")}
    assert {file.name for file in files} == {"theory.csv"} | names
    assert set(out.iterdir()) == set(files)
    starts = {".png": b"\x89PNG", ".pdf": b"%PDF", ".csv": b"figure,line,x,n,p,p2"}
    assert all(file.read_bytes().startswith(starts[file.suffix]) for file in files)


def test_the_table_holds_the_closed_forms_of_what_it_names(tmp_path, unpainted):
    with draw_theory(tmp_path, **SMALL)[0].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["figure"] for row in rows} == {"theory-trained", "theory-p2", "theory-distance"}
    norms = {"shared_norm": 0.5, "specific_norm": 3.0, "noise": 0.1}
    away = []
    for row in rows:
        numbers = {name: float(row[name]) for name in ("n", "p", "p2", "distance")}
        expected = outcome(TwoTasks(**numbers, **norms), float(row["moving"]))
        value = float(getattr(expected, row["quantity"]))
        assert float(row["closed_form"]) == pytest.approx(value, rel=1e-6)
        assert row["runs"] == "30"
        away.append((float(row["simulated"]) - value) / float(row["standard_error"]))
    assert np.sqrt(np.mean(np.square(away))) < 2


def test_a_seed_draws_the_same_points_again(tmp_path, unpainted):
    first, again, other = (
        draw_theory(tmp_path, **SMALL, seed=seed)[0].read_bytes() for seed in (1, 1, 2)
    )
    assert first == again != other


def test_tasks_without_a_crossing_or_a_p2_star_are_drawn_too(tmp_path, unpainted):
    assert draw_theory(tmp_path, **SMALL, shared_norm=5.0, specific_norm=0.0, distance=0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"p2": 7}, r"p2 must be > n \+ 1 in frozen training, got 7 at n = 6"),
        ({"noise": -1.0}, "noise must be >= 0"),
        ({"runs": 1}, "runs must be a whole number >= 2"),
        ({"seed": -1}, "seed must be a whole number >= 0"),
    ],
)
def test_nothing_is_written_of_what_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        draw_theory(tmp_path / "out", **{**SMALL, **changes})
    assert not (tmp_path / "out").exists()
