"""What batch normalisation does to mGEM, on a small Split CIFAR-100.

    python benchmarks/papers/batch_norm.py --data-root DIR --out DIR
    python benchmarks/papers/batch_norm.py --data-root DIR --out DIR --only "d*" --seeds 3

The setting of workbench.py (10 tasks of 500 examples, a head a task, 2 epochs, a CNN of 16, 32 and
64 channels), where GEM beats every mGEM. GEM, p-mGEM(8), d-mGEM(8) and d-mGEM(2) at memory strength
0.5 and "auto": with batch norm, group norm and none; and with batch norm, by what the memory's
passes do to it: statistics of each group's own samples, the running statistics moved by them
("update", as GEM) or put back ("restore"), or the running statistics used ("evaluate"); and with
four times the memory, which makes groups four times as large. Seeds that workbench.py does not use.
Stop it whenever you like; the same command continues.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import typer
from strength import FRESH, SIZES

from avalanche_mgem.experiment import METHODS, CNNFactory, Method, NamedStream, Training, compare

STREAM = "split-cifar100"
MEMORY = 32
KINDS: dict[str, dict[str, int]] = {
    "gem": {},
    "p(8)": {"parameter_groups": 8},
    "d(8)": {"memory_groups": 8},
    "d(2)": {"memory_groups": 2},
}
STRENGTHS = (0.5, "auto")
# Name -> the network's normalisation, what becomes of it in the memory's passes, and the memory.
SETTINGS: dict[str, tuple[str, str, int]] = {
    "batch": ("batch", "update", MEMORY),
    "batch, restore": ("batch", "restore", MEMORY),
    "batch, evaluate": ("batch", "evaluate", MEMORY),
    "batch, 4 x memory": ("batch", "update", 4 * MEMORY),
    "group": ("group", "update", MEMORY),
    "none": ("none", "update", MEMORY),
}


def methods(batchnorm: str) -> Iterator[Method]:
    """Every kind of mGEM at both strengths; GEM is mGEM with one module and one group."""
    for kind, groups in KINDS.items():
        for strength in STRENGTHS:
            settings: dict[str, Any] = {"parameter_groups": 1, "memory_groups": 1, **groups}
            yield METHODS["mgem-p"].variant(
                f"{kind} {strength}",
                **settings,
                memory_strength=strength,
                memory_batchnorm=batchnorm,
            )


def main(
    data_root: Annotated[Path, typer.Option(help="Folder with cifar100.npz, or for torchvision.")],
    out: Annotated[Path, typer.Option(help="Results folder; a folder in it for each setting.")],
    seeds: Annotated[int, typer.Option(min=1, max=5, help="How many.")] = 5,
    jobs: int = 1,
    only: Annotated[
        list[str] | None, typer.Option(help="Methods by pattern, with * and ?; repeatable.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--setting", help="One of the settings; repeatable.")
    ] = None,
) -> None:
    for name in settings or SETTINGS:
        if name not in SETTINGS:
            raise typer.BadParameter(f"--setting must be one of {', '.join(SETTINGS)}, got {name}")
        norm, batchnorm, memory = SETTINGS[name]
        chosen = [
            method
            for method in methods(batchnorm)
            if not only or any(fnmatchcase(method.name, pattern) for pattern in only)
        ]
        compare(
            chosen,
            stream=NamedStream(STREAM, {**SIZES[STREAM], "data_root": str(data_root)}),
            model=CNNFactory((16, 32, 64), heads="multi", norm=norm),  # type: ignore[arg-type]
            training=Training(learning_rate=0.05, epochs=2, memory=memory),
            seeds=FRESH[:seeds],
            out=out / name.replace(", ", "-").replace(" ", ""),
            jobs=jobs,
        )


if __name__ == "__main__":
    typer.run(main)
