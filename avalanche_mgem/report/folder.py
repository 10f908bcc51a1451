"""A folder with everything that finished runs have to show: tables, pictures, a TensorBoard log."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from avalanche_mgem.arguments import as_list, as_path, flag
from avalanche_mgem.files import is_unfinished, write_atomically
from avalanche_mgem.report.latex import latex_table
from avalanche_mgem.report.markdown import markdown_table
from avalanche_mgem.report.paired import paired_markdown, write_paired_csv
from avalanche_mgem.results.csv import write_accuracy_csv, write_csv
from avalanche_mgem.results.file_names import file_name
from avalanche_mgem.results.histories import History, read_history
from avalanche_mgem.results.paired import paired_comparisons
from avalanche_mgem.results.result import RunResult
from avalanche_mgem.results.summary import (
    FURTHER,
    by_method,
    by_stream,
    on_validation,
    require_runs,
    stream_length,
    validation_name,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARK = "avalanche-mgem-report.json"
_FORMAT = 1
_TENSORBOARD = "tensorboard"
_PAIRED, _VALIDATION = ("paired.md", "paired.csv"), "validation.tex"
_PAGE = "report.html"
_TABLES = ("table.md", "table.tex", "scores.md", "scores.tex", "results.csv", "accuracy.csv")


def write_report(
    results: Sequence[RunResult],
    out: str | Path,
    *,
    tensorboard: bool = True,
    paired: Sequence[str] | None = None,
    html: bool = False,
    metrics: Sequence[str | Path] | None = None,
) -> list[Path]:
    """Write tables and pictures of finished runs into a folder, in one of its own for each stream.

    With one stream, the files lie in out itself: table.md and table.tex; the scores on validation
    data, where there are some, in a second table of table.md and in validation.tex; scores.md and
    scores.tex with the further scores; results.csv, accuracy.csv; accuracy, tradeoff, forgetting,
    heatmaps and, of runs that were evaluated within their experiences, stability, each as .png and
    .pdf. An earlier report is replaced: its files that this one does not have are removed, others'
    files stay. With `html`, report.html has all streams, see `html_page`; it lies in out.

    Args:
        results: runs of one or several streams, told apart by method, stream and seed.
        out: new, empty or an earlier report.
        tensorboard: write a TensorBoard log of settings, scores and pictures as well.
        paired: names of two methods to compare over the seeds that both have, in paired.md and
            paired.csv, see `paired_comparisons`; None: no two.
        html: write report.html as well; needs the extra html.
        metrics: of each run, the file of its metrics over training, which report.html draws; None,
            or a file that is not there: it shows none.

    Returns:
        The files, and the folder of the TensorBoard log.

    Raises:
        ValueError: out holds something else, or results cannot be compared, see
            `summary.by_method` and `paired_comparisons`; nothing has been written.
        ImportError: html, without the extra.
        OSError: out cannot be written.
    """
    require_runs(results)
    out, results = as_path("out", out), list(results)
    flag("tensorboard", tensorboard)
    histories = _histories(results, metrics) if flag("html", html) else []
    streams = by_stream(results)
    for runs in streams.values():
        for method, of_method in by_method(runs).items():
            stream_length(method, of_method)
    comparisons = [] if paired is None else paired_comparisons(results, paired)
    pairs = {
        stream: [each for each in comparisons if each.stream in (stream, validation_name(stream))]
        for stream in streams
    }
    earlier = _earlier_files(out)
    # What is wrong has been told by now, without waiting for matplotlib.
    page = _page(results, histories) if html else ""
    from avalanche_mgem.report.tensorboard import event_files, write_hparams, write_images

    folders = {stream: out / file_name(stream) if len(streams) > 1 else out for stream in streams}
    files = [
        folders[stream] / name
        for stream, runs in streams.items()
        for name in (*_names(runs), *(_PAIRED if pairs[stream] else ()))
    ]
    files += [out / _PAGE] if html else []
    out.mkdir(parents=True, exist_ok=True)
    # First of all, so that a report that was stopped is known to be one.
    _write_mark(out, {*earlier, *files})
    _remove(out, {*earlier, *event_files(out / _TENSORBOARD)} - set(files))
    for stream, runs in streams.items():
        figures = _write_stream(runs, folders[stream])
        if pairs[stream]:
            write_atomically(folders[stream] / "paired.md", paired_markdown(pairs[stream]).encode())
            write_paired_csv(pairs[stream], folders[stream] / "paired.csv")
        if tensorboard:
            write_images(figures, out / _TENSORBOARD / file_name(stream) / "figures")
    if html:
        write_atomically(out / _PAGE, page.encode())
    if tensorboard:
        write_hparams(results, out / _TENSORBOARD)
    _write_mark(out, files)
    return [*files, out / _TENSORBOARD] if tensorboard else files


def _page(results: Sequence[RunResult], histories: Sequence[History]) -> str:
    from avalanche_mgem.report.html import html_page

    return html_page(results, histories)


def _histories(results: Sequence[RunResult], metrics: Sequence[str | Path] | None) -> list[History]:
    if metrics is None:
        return [{} for _ in results]
    files = as_list("metrics", metrics, (str, Path), what="a list of files, one a run")
    if len(files) != len(results):
        raise ValueError(f"metrics must name {len(results)} files, one a run, got {len(files)}")
    return [read_history(Path(file)) for file in files]


def _names(runs: Sequence[RunResult]) -> list[str]:
    """The files of a stream with these runs."""
    pictures = [f"{name}.{ending}" for name in _figures(runs) for ending in ("png", "pdf")]
    return [*_TABLES, *([_VALIDATION] if on_validation(runs) else []), *pictures]


def _figures(runs: Sequence[RunResult]) -> dict[str, Callable[[Sequence[RunResult]], Figure]]:
    from avalanche_mgem.report.figures.accuracy import FIGURES
    from avalanche_mgem.report.figures.stability import has_curve, stability_figure

    return {**FIGURES, "stability": stability_figure} if has_curve(runs) else {**FIGURES}


def _is_ours(name: str) -> bool:
    """Whether a report may have a file of that name."""
    from avalanche_mgem.report.figures.accuracy import FIGURES

    stem, _, ending = name.rpartition(".")
    return name in (*_TABLES, *_PAIRED, _VALIDATION, _PAGE) or (
        stem in (*FIGURES, "stability") and ending in ("png", "pdf")
    )


def _write_stream(runs: Sequence[RunResult], folder: Path) -> dict[str, Figure]:
    from avalanche_mgem.report.figures.canvas import pdf, png

    folder.mkdir(exist_ok=True)
    held_out = on_validation(runs)
    tables = [markdown_table(each) for each in (runs, held_out) if each]
    write_atomically(folder / "table.md", "\n".join(tables).encode())
    if held_out:  # by itself: what reads table.tex would show two tables without a name
        write_atomically(folder / _VALIDATION, latex_table(held_out).encode())
    write_atomically(folder / "table.tex", latex_table(runs).encode())
    write_atomically(folder / "scores.md", markdown_table(runs, FURTHER).encode())
    write_atomically(folder / "scores.tex", latex_table(runs, FURTHER).encode())
    write_csv(runs, folder / "results.csv")
    write_accuracy_csv(runs, folder / "accuracy.csv")
    figures = {name: draw(runs) for name, draw in _figures(runs).items()}
    for name, figure in figures.items():
        write_atomically(folder / f"{name}.pdf", pdf(figure))
        write_atomically(folder / f"{name}.png", png(figure))
    return figures


def _earlier_files(out: Path) -> set[Path]:
    """Return the files of the report that out is; raise ValueError if it is something else."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"out: {out} is a file; name a folder")
    mark = out / _MARK
    if not mark.exists():
        if out.exists() and any(path for path in out.iterdir() if not is_unfinished(path, _MARK)):
            raise ValueError(
                f"out: {out} holds something else than a report; name a new or empty folder"
            )
        return set()
    try:
        record = json.loads(mark.read_text(encoding="utf-8"))
        found, names = record["format"], [str(name) for name in record["files"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"out: {mark} is damaged: {error}") from error
    if found != _FORMAT:
        raise ValueError(
            f"out: {out} is a report in format {found!r}, this version of avalanche-mgem writes "
            f"format {_FORMAT}; name another folder"
        )
    # Whatever the mark says, only a report's own files inside out are ever removed.
    ours = [out / name for name in names if _is_ours(Path(name).name)]
    return {path for path in ours if path.resolve().is_relative_to(out.resolve())}


def _write_mark(out: Path, files: Iterable[Path]) -> None:
    names = sorted(path.relative_to(out).as_posix() for path in files)
    record = {"format": _FORMAT, "files": names}
    write_atomically(out / _MARK, json.dumps(record, indent=1).encode() + b"\n")


def _remove(out: Path, files: Iterable[Path]) -> None:
    """Remove the files, and the folders below out that this leaves empty."""
    for file in files:
        file.unlink(missing_ok=True)
        for folder in file.parents:
            if folder == out or not folder.is_dir() or any(folder.iterdir()):
                break
            folder.rmdir()
