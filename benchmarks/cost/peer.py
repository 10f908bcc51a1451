"""The exact projection against TorchJD's, on one thread.

    OMP_NUM_THREADS=1 python benchmarks/cost/peer.py
    OMP_NUM_THREADS=1 python benchmarks/cost/peer.py --rows 5 --rows 20 --columns 2000

TorchJD (0.18, which must be installed: `pip install torchjd qpsolvers quadprog`) projects a
combination of a matrix's rows onto the dual cone of all of them; with the gradient for its first
row, this is GEM's problem. For K memory rows of three kinds, K = 5, 20, 160 and 1,000, it prints
the median of the paired ratios (theirs / ours) of the seconds from gradient and rows to the
projected gradient, and the largest violation that each leaves, in units of the gradient's length.
Kinds: "gaussian"; "correlated": a direction that all share, so that the gradient violates all;
"gradient-like": a spectrum that falls off, as that of gradients in training.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer
from clock import Pairs, in_turns, pair_numbers, seconds_of
from torch import Tensor

from avalanche_mgem.restriction import project

KINDS = ("gaussian", "correlated", "gradient-like")
ROWS = (5, 20, 160, 1000)
_COLUMNS = 90_000
_SECONDS = 6.0


def main(
    rows: Annotated[list[int] | None, typer.Option(min=1, help="K; all four unless given.")] = None,
    columns: Annotated[int, typer.Option(min=2, help="P.")] = _COLUMNS,
    repeats: Annotated[int, typer.Option(min=1, help="Pairs, if time allows.")] = 9,
) -> None:
    if os.environ.get("OMP_NUM_THREADS") != "1":
        raise typer.BadParameter("set OMP_NUM_THREADS=1 before Python starts: the costs are of one")
    torch.set_num_threads(1)
    theirs = find_peer()
    if theirs is None:
        print("left out: TorchJD is not installed")
        return
    for n_rows in rows or ROWS:
        for kind in KINDS:
            print(told(kind, n_rows, measure(theirs, kind, n_rows, columns, repeats)), flush=True)


def find_peer() -> Callable[[Tensor, Tensor], Tensor] | None:
    """Return TorchJD's projection as a function of g [P] and A [K, P]; None: not installed."""
    try:
        from torchjd.linalg import QuadprogProjector
    except ImportError:
        return None
    projector: Any = QuadprogProjector()

    def projected(gradient: Tensor, rows: Tensor) -> Tensor:
        matrix = torch.cat((gradient[None], rows))
        wanted = torch.zeros(len(matrix))
        wanted[0] = 1.0
        return projector(wanted, matrix @ matrix.T) @ matrix  # type: ignore[no-any-return]

    return projected


def make_problem(kind: str, n_rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Return a gradient [P] and memory rows [K, P] of a kind."""
    generator = torch.Generator().manual_seed(n_rows)
    rows = torch.randn(n_rows, columns, generator=generator)
    gradient = torch.randn(columns, generator=generator)
    if kind == "correlated":
        shared = torch.randn(columns, generator=generator)
        return gradient - shared, rows + shared
    if kind == "gradient-like":
        size = min(n_rows, columns)
        sizes = torch.arange(1, size + 1).float().rsqrt()
        mixed = torch.randn(n_rows, size, generator=generator) @ (rows[:size] * sizes[:, None])
        own = torch.randn(size, generator=generator) @ (rows[:size] * sizes[:, None])
        noise = 0.3 * torch.randn(n_rows, columns, generator=generator)
        return own + 0.3 * gradient, mixed + noise
    return gradient, rows


def measure(
    theirs: Callable[[Tensor, Tensor], Tensor], kind: str, n_rows: int, columns: int, repeats: int
) -> dict[str, Any]:
    """Return the ratios and both sides' violations."""
    gradient, rows = make_problem(kind, n_rows, columns)
    sides = {
        "ours": lambda: project(gradient, rows).gradient,
        "baseline": lambda: theirs(gradient, rows),
    }
    left = {name: _violation(side(), gradient, rows) for name, side in sides.items()}
    pairs = Pairs()
    for pair in pair_numbers(repeats, _SECONDS):
        pairs.add(**{name: seconds_of(sides[name]) for name in in_turns(pair)})
    violated = float(((rows @ gradient) < 0).double().mean())
    return {**pairs.summary(), "left": left, "violated": violated}


def _violation(vector: Tensor, gradient: Tensor, rows: Tensor) -> float:
    """The most that a row of length one is harmed by, relative to the gradient."""
    wide = rows.double()
    harm = -(wide @ vector.double()) / wide.norm(dim=1)
    return max(0.0, float(harm.max() / gradient.double().norm()))


def told(kind: str, n_rows: int, row: dict[str, Any]) -> str:
    """Return a row as a line."""
    return (
        f"K={n_rows} {kind}: {row['value']:.2f}x ({row['quartile_1']:.2f}-{row['quartile_3']:.2f}),"
        f" {row['ours']:.3g} / {row['baseline_value']:.3g} ms, {row['violated']:.0%} violated,"
        f" left {row['left']['ours']:.1e} / {row['left']['baseline']:.1e} of ||g||"
    )


if __name__ == "__main__":
    typer.run(main)
