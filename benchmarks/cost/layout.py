"""Which layer makes gradients in channels_last differ from those of contiguous images.

    OMP_NUM_THREADS=1 python benchmarks/cost/layout.py --out DIR
    OMP_NUM_THREADS=1 python benchmarks/cost/layout.py --patterns 256

GEM's slim ResNet-18, trained on one past task, runs forward and backward on that task's memory: on
contiguous images, on the same in channels_last (the parameters stay as they are, as with
`memory_format="channels_last"`), and in float64. For each layer the table has how far apart the
gradients of its parameters are in the network; and then of the layer alone, which is given the
input and the output's gradient that it has in the contiguous network, its outputs, its gradients
and those of its input, against float64. Differences are ||a - b|| / ||b||. "signs": how many of a
layer's outputs in the network are on the other side of zero than in float64: where a ReLU follows,
what flows back through them is all or nothing.

A layer that ends the process is said to; each is measured in a process that may end. It takes about
a minute.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from cost_cases import Case
from rich.console import Console
from rich.table import Table
from setting import make_ours, relative_difference, start_model
from torch import Tensor, nn

from avalanche_mgem.files import write_atomically

Layout = Callable[[Tensor], Tensor]
Seen = dict[str, tuple[Tensor, Tensor, Tensor]]

LAYOUTS: dict[str, Layout] = {
    "contiguous": Tensor.contiguous,
    "last": lambda x: x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x,
    "float64": Tensor.double,
}
NETWORK = {
    "network: last - contiguous": ("last", "contiguous"),
    "contiguous - float64": ("contiguous", "float64"),
    "last - float64": ("last", "float64"),
}
PARTS = ("output", "parameters", "input")
SIGNS = [f"signs: {layout}" for layout in ("contiguous", "last")]
ALONE = [f"alone, {part}: {layout}" for part in PARTS for layout in ("contiguous", "last")]
CRASHED = "crashed"
_WHOLE = "all parameters"

app = typer.Typer(add_completion=False)


@app.command()
def main(
    out: Annotated[Path | None, typer.Option(help="Folder of layout.md.")] = None,
    patterns: Annotated[int, typer.Option(min=2, help="Images of the memory.")] = 25,
    begin: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    if os.environ.get("OMP_NUM_THREADS") != "1":
        raise typer.BadParameter("set OMP_NUM_THREADS=1 before Python starts: one sum, one order")
    torch.set_num_threads(1)
    if begin is not None:
        for line in measured(patterns, begin):
            print(json.dumps(line), flush=True)
        return
    rows = rows_of_children(patterns)
    headings = ["layer", "kind", *NETWORK, *SIGNS, *ALONE]
    cells = [list(map(_cell, row)) for row in rows]
    shown = Table(*headings)
    for row in cells:
        shown.add_row(*row)
    console = Console()
    console.width = max(console.width, 200)
    console.print(shown)
    console.print(found := conclusion(rows))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        lines = [headings, [":--"] * len(headings), *cells]
        text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        told = f"Slim ResNet-18, {patterns} images, torch {torch.__version__}, one thread. {found}"
        write_atomically(out / "layout.md", f"{told}\n\n{text}\n".encode())


def rows_of_children(patterns: int) -> list[list[Any]]:
    """Return the table's rows; a child goes on behind the layer that has ended the one before."""
    rows: list[list[Any]] = []
    command = [sys.executable, str(Path(__file__).resolve()), "--patterns", str(patterns)]
    while True:
        child = [*command, "--begin", str(len(rows))]
        done = subprocess.run(child, check=False, stdout=subprocess.PIPE, text=True)
        names: list[str] = []
        for line in map(json.loads, done.stdout.splitlines()):
            if isinstance(line, list):
                rows.append(line)
            else:
                names.append(line)
        if done.returncode == 0:
            return rows
        if done.returncode > 0 or not names:
            raise RuntimeError(f"{' '.join(child[1:])} failed")
        rows.append([names[-1], CRASHED, *[CRASHED] * len([*NETWORK, *SIGNS, *ALONE])])


def measured(patterns: int, begin: int) -> Iterator[str | list[Any]]:
    """Yield a layer's name and then its row, for all from `begin` on; the network comes first."""
    case = Case("own", "resnet", 1, patterns)
    images, labels, *_ = make_ours(case).memory.closed_groups()[0].batch
    network = start_model(case)
    seen: dict[str, Seen] = {layout: {} for layout in LAYOUTS}
    if begin == 0:
        yield _WHOLE
    gradients = {
        name: gradients_of(network, layout(images), labels, seen[name])
        for name, layout in LAYOUTS.items()
    }
    layers = [(n, m) for n, m in network.named_modules() if n in gradients["float64"]]
    everything = {name: torch.cat(list(of.values())) for name, of in gradients.items()}
    rows = [(_WHOLE, None), *layers]
    for name, layer in rows[begin:]:
        if layer is None:
            of: dict[str, Tensor | None] = dict(everything)
        else:
            yield name
            of = {layout: gradients[layout].get(name) for layout in LAYOUTS}
        differences = [_apart(of[a], of[b]) for a, b in NETWORK.values()]
        if layer is None:
            yield [name, "network", *differences, *[None] * len([*SIGNS, *ALONE])]
            continue
        positive = {layout: seen[layout][name][2] > 0 for layout in LAYOUTS}
        signs = [int((positive[k] != positive["float64"]).sum()) for k in ("contiguous", "last")]
        alone = differences_alone(layer, *seen["contiguous"][name][:2])
        yield [name, type(layer).__name__, *differences, *map(str, signs), *alone]


def gradients_of(
    network: nn.Module, images: Tensor, labels: Tensor, seen: Seen
) -> dict[str, Tensor]:
    """Return the gradient of each layer's parameters, as one vector.

    seen: is given each layer's input, its output's gradient and its output.
    """
    network = copy.deepcopy(network).to(images.dtype).train()
    leaves = {n: m for n, m in network.named_modules() if n and not any(m.children())}

    def look(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, given: tuple[Tensor], output: Tensor) -> None:
            own, made = given[0].detach().clone(), output.detach().clone()
            output.register_hook(lambda slope: seen.update({name: (own, slope.clone(), made)}))

        return hook

    for name, leaf in leaves.items():
        leaf.register_forward_hook(look(name))
    nn.functional.cross_entropy(network(images), labels).backward()
    return {
        name: torch.cat([p.grad.flatten() for p in leaf.parameters() if p.grad is not None])
        for name, leaf in leaves.items()
        if any(True for _ in leaf.parameters())
    }


def differences_alone(layer: nn.Module, given: Tensor, slope: Tensor) -> list[float | None]:
    """Return the differences from float64 of what the layer makes of an input, as ALONE."""
    made: dict[str, dict[str, Tensor | None]] = {}
    for name, layout in LAYOUTS.items():
        own = copy.deepcopy(layer).train()
        x = layout(given).detach().requires_grad_()
        output = own.to(x.dtype)(x)
        output.backward(layout(slope))
        parameters = [p.grad.flatten() for p in own.parameters() if p.grad is not None]
        made[name] = {
            "output": output.detach(),
            "parameters": torch.cat(parameters) if parameters else None,
            "input": x.grad,
        }
    exact = made["float64"]
    return [
        _apart(made[layout][part], exact[part])
        for part in PARTS
        for layout in LAYOUTS
        if layout != "float64"
    ]


def conclusion(rows: list[list[Any]]) -> str:
    """Say which layer differs from float64 the most in channels_last, next to contiguous."""
    crashed = [row[0] for row in rows if CRASHED in row]
    pairs = [
        (row[at + 1] / max(row[at], 1e-12), row[0], row[1], part, row[at], row[at + 1])
        for row in rows
        if row[0] not in crashed
        for part, at in zip(PARTS, range(len(row) - len(ALONE), len(row), 2), strict=True)
        if row[at] is not None
    ]
    told = [f"The process ended in {', '.join(crashed)}."] if crashed else []
    if pairs:
        ratio, name, kind, part, plain, last = max(pairs)
        told.append(
            f"Alone, {name} ({kind}) loses most by the layout: its {part} is {last:.1e} from "
            f"float64 in channels_last and {plain:.1e} on contiguous images, {ratio:.1f} times."
        )
    return " ".join(told)


def _apart(a: Tensor | None, b: Tensor | None) -> float | None:
    return None if a is None or b is None else relative_difference(a, b)


def _cell(value: str | float | None) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else f"{value:.1e}"


if __name__ == "__main__":
    app()
