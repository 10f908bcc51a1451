import io
import itertools
import subprocess
import sys

import numpy as np
import pytest
from made_results import make, make_many
from rich.console import Console

from avalanche_mgem.report.latex import latex_table
from avalanche_mgem.report.markdown import markdown_table, results_table
from avalanche_mgem.results.summary import FURTHER, by_method, by_stream

HEADINGS = ["Method", "Seeds", "ACC", "BWT", "LA", "FWT", "Forgetting", "Seconds"]


def matrix_of(acc, la):
    """R of two experiences with that ACC and LA; BWT = 2 (acc - la)."""
    return np.array([[la, np.nan], [2 * acc - la, la]])


def printed(results, width):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(results_table(results, width))
    return console.file.getvalue()


def markdown_cells(text):
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_order_of_the_runs_of_a_method_does_not_matter():
    results = make_many()
    first, last = results[:3], results[3:]
    for order in itertools.islice(itertools.permutations(last), 0, 720, 97):
        assert markdown_table([*first, *order]) == markdown_table(results)
        assert printed([*first, *order], 100) == printed(results, 100)


def test_rows_are_the_methods_in_order_of_first_appearance():
    table = results_table(make_many(), 100)
    assert [column.header for column in table.columns] == HEADINGS
    assert [str(cell) for cell in table.columns[0].cells] == ["naive", "gem", "mgem-pd-approx"]
    assert list(table.columns[1].cells) == ["3", "3", "3"]


def test_both_tables_say_the_same():
    markdown = markdown_cells(markdown_table(make_many()))
    table = results_table(make_many(), 200)
    rows = zip(*(column.cells for column in table.columns), strict=True)
    shown = [[str(cell) for cell in row] for row in rows]
    assert markdown[0] == HEADINGS
    assert [[cell.strip("*") for cell in row] for row in markdown[2:]] == shown


def test_cell_is_mean_and_half_width():
    levels = [0.7, 0.8, 0.9]
    results = [make(seed=s, accuracy=matrix_of(x, x), size=2) for s, x in enumerate(levels)]
    acc, bwt = markdown_cells(markdown_table(results))[2][2:4]
    assert acc == "**0.800 ± 0.248**"  # 4.3027 * 0.1 / sqrt(3)
    assert bwt == "**0.000 ± 0.000**"


def test_one_seed_is_the_value_alone():
    row = markdown_cells(markdown_table([make(accuracy=matrix_of(0.75, 0.8), size=2)]))[2]
    assert row == ["gem", "1", "**0.750**", "**-0.100**", "**0.800**", "-", "**0.100**", "12.5"]
    assert "no intervals" in markdown_table([make()])


def test_nothing_forgotten_is_not_minus_zero():
    assert "-0.000" not in markdown_table([make(accuracy=matrix_of(0.75, 0.75), size=2)])


def test_one_experience_has_dashes():
    row = markdown_cells(markdown_table([make(size=1), make(size=1, seed=1)]))[2]
    assert row[3] == row[5] == row[6] == "-"


def test_a_seed_without_a_value_gives_a_dash_not_the_mean_of_the_others():
    lost = make(seed=1, accuracy=np.full((3, 3), np.nan))
    assert markdown_cells(markdown_table([make(), lost]))[2][2:7] == ["-"] * 5


def test_seeds_that_diverged_are_counted_and_left_out():
    good = [make("ewc", seed=s, accuracy=matrix_of(0.9, 0.9), size=2) for s in range(2)]
    lost = make("ewc", seed=2, accuracy=np.full((2, 2), np.nan), seconds=1e6, diverged=1)
    gone = make("si", accuracy=matrix_of(0.8, 0.8), size=2, diverged=0)
    other = make("gem", accuracy=matrix_of(0.7, 0.7), size=2)
    text = markdown_table([*good, lost, gone, other])
    rows = {row[0]: row[1:] for row in markdown_cells(text)[2:]}
    assert rows["ewc"][:2] == ["3 (1 diverged)", "0.900 ± 0.000"]
    assert rows["ewc"][-1] == "12.5 ± 0.0"
    assert rows["si"] == ["1 (1 diverged)", *["-"] * 6]
    assert rows["gem"][:2] == ["1", "**0.700**"]
    assert "Diverged: loss, weights or outputs became NaN or Inf" in text
    assert "3 (1 diverged) & $0.900" in latex_table([*good, lost, gone, other])
    assert "diverged" not in markdown_table([*good, other]).lower()


def test_further_scores_have_a_table_of_their_own():
    R = np.array([[0.9, 0.1], [0.6, 0.8]])
    results = [
        make(accuracy=R, masked=np.full((2, 2), 0.95), size=2),
        make("old", accuracy=R, size=2),
    ]
    rows = markdown_cells(markdown_table(results, FURTHER))
    assert rows[0] == ["Method", "Seeds", "AIA", "min-ACC", "WC-ACC", "Task-IL ACC"]
    assert rows[2] == ["gem", "1", "**0.800**", "**0.600**", "**0.700**", "**0.950**"]
    assert rows[3] == ["old", "1", "**0.800**", "**0.600**", "**0.700**", "-"]


def test_best_is_bold_in_its_own_sense():
    results = [
        make("learns", accuracy=matrix_of(0.6, 0.9), size=2),
        make("remembers", accuracy=matrix_of(0.7, 0.7), size=2),
        make("neither", accuracy=matrix_of(0.5, 0.6), size=2),
    ]
    cells = markdown_cells(markdown_table(results))[2:]
    bold = {(row[0], HEADINGS[i]) for row in cells for i, cell in enumerate(row) if "**" in cell}
    assert bold == {
        ("learns", "LA"),
        ("remembers", "ACC"),
        ("remembers", "BWT"),
        ("remembers", "Forgetting"),
    }
    column = results_table(results, 100).columns[2]
    assert [str(cell.style) for cell in column.cells] == ["", "bold", ""]


def test_what_looks_equal_is_equally_bold():
    results = [make(m, accuracy=matrix_of(x, x), size=2) for m, x in [("a", 0.7), ("b", 0.70004)]]
    cells = markdown_cells(markdown_table(results))[2:]
    assert [row[2] for row in cells] == ["**0.700**", "**0.700**"]


@pytest.mark.parametrize("width", [80, 90, 100, 120])
def test_printed_table_keeps_its_width_and_every_number_whole(width):
    text = printed(make_many(), width)
    assert all(len(line) <= width for line in text.splitlines())
    assert "\x1b" not in text
    assert "…" not in text
    numbers = markdown_table(make_many()).replace("*", "").replace("|", " ").split()
    words = set(text.replace("±", " ± ").split())
    assert words >= {word for word in numbers if word[-1].isdigit()}


def test_one_line_a_method_where_there_is_room():
    lines = printed(make_many(), 100).splitlines()
    assert sum("±" in line and "half-width" not in line for line in lines) == 3
    assert " ± " in printed(make_many(), 130).splitlines()[3]


def test_names_are_no_markup():
    text = printed([make("gem[bold]", stream="a[/]b")], 100)
    assert "gem[bold]" in text
    assert "a[/]b" in text
    assert r"a\|b" in markdown_table([make("a|b")])


@pytest.mark.parametrize("table", [results_table, markdown_table, by_method])
def test_tables_refuse_what_they_cannot_average(table):
    with pytest.raises(ValueError, match="results must hold at least one run"):
        table([])
    with pytest.raises(ValueError, match=r"results must be of one stream.*'a', 'b'"):
        table([make(stream="a"), make(stream="b")])
    with pytest.raises(ValueError, match="results holds method='gem', seed=1 twice"):
        table([make(seed=1), make(), make(seed=1)])


def test_by_stream_loses_no_run():
    results = [make(stream=name, seed=s) for s in range(2) for name in "ba"]
    groups = by_stream(results)
    assert list(groups) == ["b", "a"]
    assert [run.seed for run in groups["a"]] == [0, 1]
    assert by_stream([]) == {}


def test_reports_themselves_import_neither_torch_nor_avalanche_nor_pyplot():
    code = (
        "import sys, types, avalanche_mgem\n"
        "for name in ('evaluation', 'experiment'):  # without what the packages hand on\n"
        "    package = types.ModuleType(f'avalanche_mgem.{name}')\n"
        "    package.__path__ = [f'{avalanche_mgem.__path__[0]}/{name}']\n"
        "    sys.modules[package.__name__] = package\n"
        "import avalanche_mgem.report.folder\n"
        "print({'torch', 'avalanche', 'matplotlib.pyplot'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
