"""A report holds everything, and only ever replaces a report."""

from dataclasses import replace

import pytest
from made_results import curve, held_out, joint, made, many, saved

from avalanche_mgem.report.figures import canvas
from avalanche_mgem.report.figures.accuracy import FIGURES
from avalanche_mgem.report.folder import write_report
from avalanche_mgem.report.latex import latex_table
from avalanche_mgem.report.markdown import markdown_table
from avalanche_mgem.results.summary import FURTHER, on_validation

PICTURES = ["accuracy", "tradeoff", "forgetting", "heatmaps"]
TABLES = ["table.md", "table.tex", "scores.md", "scores.tex", "results.csv", "accuracy.csv"]
MARK = "avalanche-mgem-report.json"


@pytest.fixture
def plain_pictures(monkeypatch):
    """Pictures that take no time to draw."""
    monkeypatch.setattr(canvas, "png", lambda figure: b"png")
    monkeypatch.setattr(canvas, "pdf", lambda figure: b"pdf")


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def all_names(prefix=""):
    pictures = [f"{name}.{ending}" for name in PICTURES for ending in ("png", "pdf")]
    return {f"{prefix}{name}" for name in [*TABLES, *pictures]}


def test_one_stream_lies_in_the_folder_itself(tmp_path):
    results = [*many(["naive"], 1), joint()]
    written = write_report(results, tmp_path / "new" / "out")
    out = tmp_path / "new" / "out"
    assert written == [*sorted(written[:-1], key=written.index), out / "tensorboard"]
    assert {path.name for path in written[:-1]} == all_names()
    logs = {name for name in names(out) if name.startswith("tensorboard/")}
    assert names(out) - logs == all_names() | {MARK}
    assert len(logs) == len(results) + 1
    assert (out / "table.md").read_text() == markdown_table(results)
    assert (out / "table.tex").read_text() == latex_table(results)
    assert (out / "scores.md").read_text() == markdown_table(results, FURTHER)
    assert (out / "scores.tex").read_text() == latex_table(results, FURTHER)
    for name in PICTURES:
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (out / f"{name}.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.usefixtures("plain_pictures")
def test_runs_evaluated_within_their_experiences_have_one_picture_more(tmp_path):
    run = made()
    write_report([replace(run, curve=curve(run.accuracy)), made("ewc")], tmp_path)
    assert {"stability.png", "stability.pdf"} <= names(tmp_path)
    write_report([run], tmp_path, tensorboard=False)
    assert names(tmp_path) == all_names() | {MARK}


def test_scores_on_validation_data_have_a_table_in_latex(tmp_path, monkeypatch):
    monkeypatch.setattr("avalanche_mgem.report.folder._figures", lambda runs: {})
    runs = [made(stream="x", validation=held_out()), made(stream="y")]
    write_report(runs, tmp_path, tensorboard=False)
    assert (tmp_path / "x" / "validation.tex").read_text() == latex_table(on_validation(runs))
    assert not (tmp_path / "y" / "validation.tex").exists()
    write_report(runs[1:], tmp_path, tensorboard=False)
    assert not (tmp_path / "x").exists()


@pytest.mark.usefixtures("plain_pictures")
def test_several_streams_have_a_folder_each(tmp_path):
    streams = [made(stream="a/b"), made(stream="a_b"), made(stream="c")]
    written = write_report(streams, tmp_path, tensorboard=False)
    assert all(path.is_file() for path in written)
    folders = {path.parent for path in written}
    assert len(folders) == 3
    assert {folder.parent for folder in folders} == {tmp_path}
    assert names(tmp_path / "c") == all_names()


@pytest.mark.usefixtures("plain_pictures")
def test_a_second_report_leaves_nothing_of_the_first_and_everything_else(tmp_path):
    write_report([made(stream="a"), made(stream="b")], tmp_path)
    (tmp_path / "a" / "notes.txt").write_text("mine")
    (tmp_path / "tensorboard" / "notes.txt").write_text("mine")
    write_report([made(stream="b")], tmp_path, tensorboard=False)
    kept = {"a/notes.txt", "tensorboard/notes.txt"}
    assert names(tmp_path) == all_names() | {MARK} | kept
    assert not (tmp_path / "b").exists()


@pytest.mark.usefixtures("plain_pictures")
def test_the_same_report_again_is_the_same(tmp_path):
    write_report(many(), tmp_path, tensorboard=False)
    first = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    write_report(many(), tmp_path, tensorboard=False)
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == first


def test_pictures_for_print_are_the_same_every_time():
    figures = [FIGURES["accuracy"](many(["gem"])) for _ in range(2)]
    assert canvas.pdf(figures[0]) == canvas.pdf(figures[1])


@pytest.mark.usefixtures("plain_pictures")
def test_a_report_that_was_stopped_is_replaced(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("avalanche_mgem.report.folder.latex_table", full)
        with pytest.raises(OSError, match="No space"):
            write_report([made(stream="a"), made(stream="b")], tmp_path)
    write_report([made()], tmp_path, tensorboard=False)
    assert names(tmp_path) == all_names() | {MARK}


def test_what_is_no_report_stays_as_it_is(tmp_path):
    results = saved(tmp_path / "results", many())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "table.md").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    for out in (results, tmp_path / "other", tmp_path / "file"):
        with pytest.raises(ValueError, match="out: ") as error:
            write_report([made()], out)
        assert str(out) in str(error.value)
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1}', '{"format": 2, "files": []}'])
def test_a_mark_that_cannot_be_read_is_named(text, tmp_path):
    (tmp_path / MARK).write_text(text)
    with pytest.raises(ValueError, match=rf"out: .*({MARK} is damaged|format 2)"):
        write_report([made()], tmp_path)
    assert names(tmp_path) == {MARK}


@pytest.mark.usefixtures("plain_pictures")
def test_a_forged_mark_removes_nothing_but_files_of_a_report(tmp_path):
    out = tmp_path / "out"
    (out / "own").mkdir(parents=True)
    for path in (tmp_path / "table.md", out / "own" / "thesis.tex"):
        path.write_text("mine")
    (out / MARK).write_text('{"format": 1, "files": ["../table.md", "own/thesis.tex"]}')
    write_report([made()], out, tensorboard=False)
    assert (tmp_path / "table.md").read_text() == "mine"
    assert (out / "own" / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([], "at least one run"),
        ([made(), made()], "twice"),
        ([made(), made(seed=1, size=4)], "as many experiences"),
    ],
)
def test_what_cannot_be_compared_writes_nothing(results, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_report(results, tmp_path / "out")
    assert not list(tmp_path.iterdir())
