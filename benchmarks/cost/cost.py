"""What the restriction costs, against Avalanche's GEMPlugin, on one thread.

    OMP_NUM_THREADS=1 python benchmarks/cost/cost.py --out DIR
    OMP_NUM_THREADS=1 python benchmarks/cost/cost.py --quick
    OMP_NUM_THREADS=1 python benchmarks/cost/cost.py --only "own mlp T20*" --repeats 30

Prints, for each case, the median of the paired ratios (GEMPlugin's time / ours) with quartiles: of
the plugin's own work in an iteration ("own"), of a whole strategy.train() ("train", with the
projection's share of its iterations), of the dual solvers alone ("solver", where the target is
one of milliseconds); and the extra peak memory ("memory"). Both sides hold the same patterns; where
they solve the same problem they must end with the same parameters, or the command fails.

--out DIR keeps every finished case in cost.csv, and writes table.md. Stop it whenever you like; the
same command continues. All of it takes about half an hour. The speed of bfloat16 is left out where
the processor has no units for it.
"""

from __future__ import annotations

import fnmatch
import os
import warnings
from pathlib import Path
from typing import Annotated

import torch
import typer
from cost_cases import Case, all_cases, quick_cases
from memory import measure_memory
from own_work import measure_own_work
from record import Results, rows_of
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from show import table, write_markdown
from solvers import find_solver, measure_solver
from whole_train import measure_train

from avalanche_mgem.model.bf16 import has_bf16_units

MEASURES = {
    "own": measure_own_work,
    "train": measure_train,
    "memory": measure_memory,
    "solver": measure_solver,
}
SAME = 1e-5  # relative difference of the parameters that is still agreement


def main(
    out: Annotated[Path | None, typer.Option(help="Folder of cost.csv and table.md.")] = None,
    only: Annotated[str, typer.Option(help="Cases whose name fits this pattern, with * and ?.")] = (
        "*"
    ),
    repeats: Annotated[int, typer.Option(min=1, help="Pairs of a case, if time allows.")] = 15,
    quick: Annotated[bool, typer.Option("--quick", help="A few small cases.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Measure anew what cost.csv holds.")
    ] = False,
) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = 200  # a table that is read in a file need not fit a screen
    _require_one_thread()
    results = _results(out, overwrite)
    cases = [case for case in (quick_cases() if quick else all_cases()) if _fits(case, only)]
    if not cases:
        raise typer.BadParameter(f"no case fits --only {only!r}")
    try:
        _measure(cases, results, repeats, console)
    finally:
        shown = [row for row in results.rows if _fits_name(row["case"], only)]
        console.print(table(shown))
        if out is not None:
            write_markdown(results.rows, out / "table.md")
    _require_agreement(shown, console)


def _measure(cases: list[Case], results: Results, repeats: int, console: Console) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("", total=len(cases))
        for case in cases:
            progress.update(task, description=case.name)
            reason = _why_not(case)
            if reason:
                progress.console.print(f"left out: {case.name}: {reason}")
            elif case not in results:
                with warnings.catch_warnings():
                    # A ridge that is needed is said once an iteration; it is no news here.
                    warnings.simplefilter("ignore")
                    measured = MEASURES[case.what](case, repeats)
                results.add(rows_of(case, measured))
            progress.advance(task)


def _why_not(case: Case) -> str:
    missing = case.missing_arguments()
    if missing:
        return f"MGEMPlugin has no {', '.join(missing)}"
    if case.wants_bf16_units and not has_bf16_units(torch.device("cpu")):
        return "this processor has no bfloat16 units"
    name = str(dict(case.arguments).get("solver", ""))
    if case.what == "solver" and find_solver(name) is None:
        return f"avalanche_mgem.restriction has no {name}"
    return ""


def _require_one_thread() -> None:
    if os.environ.get("OMP_NUM_THREADS") != "1":
        raise typer.BadParameter("set OMP_NUM_THREADS=1 before Python starts: the costs are of one")
    torch.set_num_threads(1)


def _results(out: Path | None, overwrite: bool) -> Results:
    if out is None:
        return Results(None)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "cost.csv"
    if (out / "table.md").exists() and not path.exists():
        raise typer.BadParameter(f"{out} holds a table.md that is not of this command")
    if overwrite:
        path.unlink(missing_ok=True)
    try:
        return Results(path)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _require_agreement(rows: list[dict[str, str]], console: Console) -> None:
    apart = [r for r in rows if not float(r["parameter_difference"] or 0.0) <= SAME]
    gradients = [float(r["gradient_difference"] or 0.0) for r in rows if r["what"] == "own"]
    if gradients:
        console.print(
            f"projected gradients differ by at most {max(gradients):.1e} (at least 1e-5, aim 1e-6)"
        )
    for row in apart:
        console.print(f"[red]{row['case']}: parameters differ by {row['parameter_difference']}")
    if apart:
        raise typer.Exit(1)


def _fits(case: Case, pattern: str) -> bool:
    return _fits_name(case.name, pattern)


def _fits_name(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern)


if __name__ == "__main__":
    typer.run(main)
