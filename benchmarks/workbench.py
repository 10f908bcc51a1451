"""Every method for images of the registry on three kinds of stream, at a size that two cores bear.

    python benchmarks/workbench.py permuted-digits --out DIR
    python benchmarks/workbench.py split-mnist --data-root DIR --out DIR
    python benchmarks/workbench.py split-cifar100 --data-root DIR --out DIR

permuted-digits (domain-incremental): the default comparison with all methods. split-mnist
(class-incremental, one head): 5 experiences of 2 classes, 1,000 training and 1,000 test examples
each. split-cifar100 (task-incremental, a head a task): 10 tasks of 10 classes, 500 training and 500
test examples each, a CNN of 16, 32 and 64 channels. 3 seeds; CIFAR-100 comes through torchvision or
as cifar100.npz in the data root. Adapters (lora and the like) are left out, they are for language
models; --only chooses methods by name. The penalties have the weights that choose.py chooses for
each stream.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from avalanche_mgem.experiment import (
    METHODS,
    CNNFactory,
    MLPFactory,
    NamedStream,
    Training,
    compare,
)

SIZES = {
    "permuted-digits": {"n_experiences": 10, "train_per_experience": 750},
    "split-mnist": {
        "n_experiences": 5,
        "train_per_experience": 1000,
        "test_per_experience": 1000,
    },
    "split-cifar100": {
        "n_experiences": 10,
        "train_per_experience": 500,
        "test_per_experience": 500,
        "task_labels": True,
    },
}
MODELS = {
    "permuted-digits": MLPFactory(),
    "split-mnist": MLPFactory(),
    "split-cifar100": CNNFactory((16, 32, 64), heads="multi"),
}
TRAINING = {
    "permuted-digits": Training(),
    "split-mnist": Training(learning_rate=0.05),
    "split-cifar100": Training(learning_rate=0.05, epochs=2, memory=32),
}
# The weights of the penalties that choose.py finds on data that is held out, with other seeds; the
# registry has those of permuted-digits.
CHOSEN: dict[str, dict[str, dict[str, float]]] = {
    "permuted-digits": {},
    "split-mnist": {"ewc": {"ewc_lambda": 0.01}, "si": {"si_lambda": 0.01}},
    "split-cifar100": {"ewc": {"ewc_lambda": 0.1}, "si": {"si_lambda": 1e4}},
}


def main(
    stream: str,
    out: Annotated[Path, typer.Option(help="Results folder.")],
    data_root: Annotated[Path, typer.Option(help="Folder of the data sets.")] = Path("data"),
    seeds: int = 3,
    jobs: int = 2,
    only: Annotated[list[str] | None, typer.Option(help="A method; repeatable.")] = None,
) -> None:
    if stream not in SIZES:
        raise typer.BadParameter(f"stream must be one of {', '.join(SIZES)}")
    methods = only or [name for name in METHODS if not name.endswith("lora")]
    place = {} if stream == "permuted-digits" else {"data_root": str(data_root)}
    compare(
        methods,
        stream=NamedStream(stream, {**SIZES[stream], **place}),
        model=MODELS[stream],
        training=TRAINING[stream],
        settings={name: s for name, s in CHOSEN[stream].items() if name in methods},
        seeds=seeds,
        out=out,
        jobs=jobs,
    )


if __name__ == "__main__":
    typer.run(main)
