"""What is shown of a paired comparison."""

import csv
import io

import numpy as np
import pytest
from made_results import made, many
from rich.console import Console

from avalanche_mgem.experiment import write_report
from avalanche_mgem.report import folder
from avalanche_mgem.report.figures import canvas
from avalanche_mgem.report.paired import paired_caption, paired_markdown, paired_table
from avalanche_mgem.results.paired import paired_comparisons


def compared(seeds, **fields):
    runs = many(["gem", "ewc"], seeds, 2, **fields)
    return paired_comparisons(runs, ("gem", "ewc"))[0]


def level(method, seed, value, **fields):
    return made(method, seed, 2, accuracy=np.full((2, 2), value), **fields)


def test_the_table_in_markdown():
    runs = [level("gem [a|b]", seed, 0.5 + seed / 10) for seed in range(3)]
    runs += [level("ewc", seed, 0.5) for seed in range(3)]
    text = paired_markdown(paired_comparisons(runs, ("gem [a|b]", "ewc")))
    lines = text.splitlines()
    assert lines[0] == "Stream: permuted-digits, paired: gem [a|b] - ewc"
    assert lines[2] == r"| Score | gem [a\|b] | ewc | Difference | p |"
    assert lines[4] == "| ACC | 0.600 | 0.500 | +0.100 ± 0.248 | 0.5 |"
    assert lines[5] == "| BWT | 0.000 | 0.000 | +0.000 ± 0.000 | 1 |"
    assert lines[9] == "| Seconds | 2.5 | 2.5 | +0.0 ± 0.0 | 1 |"
    assert lines[13] == "| Task-IL ACC | - | - | - | - |"


@pytest.mark.parametrize(
    ("seeds", "told"),
    [
        (1, "One pair has no interval"),
        (2, "with 2 pairs p cannot be below 0.5,"),
        (5, "with 5 pairs p cannot be below 0.0625,"),
    ],
)
def test_too_few_seeds_are_called_so(seeds, told):
    caption = paired_caption(compared(seeds))
    assert told in caption
    assert "oo few seeds" in caption


def test_enough_seeds_are_not():
    caption = paired_caption(compared(6))
    assert "few" not in caption
    assert "Left out" not in caption
    assert "Means over seeds 0, 1, 2, 3, 4, 5." in caption


def test_what_was_left_out_is_said():
    runs = [level("a", seed, 0.5, diverged=1 if seed == 2 else None) for seed in range(4)]
    runs += [level("b", seed, 0.5) for seed in (0, 1, 2)]
    (got,) = paired_comparisons(runs, ("a", "b"))
    assert "a run diverged: seed 2." in paired_caption(got)
    assert "one method alone has it: seed 3." in paired_caption(got)
    (none,) = paired_comparisons(runs[2:3] + runs[6:], ("a", "b"))
    assert paired_caption(none).startswith("No pair of runs is left: nothing can be said.")
    assert "| ACC | - | - | - | - |" in paired_markdown([none])


def test_the_terminal_shows_the_same():
    console = Console(file=io.StringIO(), width=100)
    console.print(paired_table(compared(3)))
    shown = console.file.getvalue()
    assert "paired: gem - ewc" in shown
    assert "Task-IL ACC" in shown
    assert "0.25, however" in " ".join(shown.split())


def test_a_report_has_them_for_the_streams_of_both(tmp_path, monkeypatch):
    monkeypatch.setattr(canvas, "png", lambda figure: b"png")
    monkeypatch.setattr(canvas, "pdf", lambda figure: b"pdf")
    monkeypatch.setattr(folder, "_figures", lambda runs: {})
    runs = [*many(["gem", "ewc"], 2, stream="x"), made("gem", stream="y")]
    written = write_report(runs, tmp_path, tensorboard=False, paired=("gem", "ewc"))
    assert {tmp_path / "x" / "paired.md", tmp_path / "x" / "paired.csv"} <= set(written)
    assert not (tmp_path / "y" / "paired.md").exists()
    got = paired_comparisons(runs, ("gem", "ewc"))
    assert (tmp_path / "x" / "paired.md").read_text() == paired_markdown(got)
    with (tmp_path / "x" / "paired.csv").open(newline="") as file:
        rows = {row["score"]: row for row in csv.DictReader(file)}
    acc = got[0].scores["acc"]
    assert list(rows) == list(got[0].scores)
    assert (rows["acc"]["first"], rows["acc"]["second"], rows["acc"]["pairs"]) == (
        "gem",
        "ewc",
        "2",
    )
    for name in ("difference", "half_width", "p"):
        assert float(rows["acc"][name]) == getattr(acc, name)
    assert float(rows["acc"]["smallest_p"]) == 0.5
    assert rows["acc_task_il"]["difference"] == ""
    write_report(runs, tmp_path, tensorboard=False)
    assert not (tmp_path / "x" / "paired.md").exists()


def test_wrong_names_write_nothing(tmp_path):
    with pytest.raises(ValueError, match="paired: unknown 'gme'"):
        write_report(many(["gem", "ewc"]), tmp_path / "out", paired=("gme", "ewc"))
    assert not list(tmp_path.iterdir())
