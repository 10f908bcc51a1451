"""avalanche-mgem sweep."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from avalanche_mgem.cli.errors import errors_told
from avalanche_mgem.cli.groups import with_groups
from avalanche_mgem.cli.logs import log_lines
from avalanche_mgem.cli.options import (
    LogOptions,
    ModelOptions,
    RunOptions,
    StreamOptions,
    TrainingOptions,
    names,
)


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """What is chosen, and how."""

    methods: Annotated[
        str, typer.Option(help="Names, with commas between; with + between, a combination.")
    ] = "gem,mgem-p,mgem-d"
    space: Annotated[
        Path | None,
        typer.Option(help="TOML file of what is tried; default: each method's own space."),
    ] = None
    trials: Annotated[int, typer.Option(help="Trials of each method.")] = 40
    objective: Annotated[
        str,
        typer.Option(
            help="One or two of acc, bwt, la, forgetting, aia, min_acc, wc_acc, acc_task_il."
        ),
    ] = "la,bwt"
    sampler: Annotated[str, typer.Option(help="tpe, random, nsga2, gp or qmc, of optuna.")] = "tpe"
    pruner: Annotated[
        str | None,
        typer.Option(
            help="wilcoxon, median or none; default: wilcoxon for one objective, none for two."
        ),
    ] = None
    sampler_seed: Annotated[int, typer.Option(help="Of the sampler.")] = 0
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="METHOD.SETTING=VALUE: fixed, and not tried."),
    ] = None


@with_groups
def sweep(
    choice: SweepOptions,
    stream: StreamOptions,
    model: ModelOptions,
    training: TrainingOptions,
    runs: RunOptions,
    log: LogOptions,
) -> None:
    """Choose methods' settings on held-out data; run again, or in other processes, it continues."""
    with errors_told(), log_lines(log.verbose):
        from avalanche_mgem.cli.setup import jobs_of, stream_and_model, training_of
        from avalanche_mgem.experiment import sweep as run_sweep
        from avalanche_mgem.methods.registry import parse_settings

        made_stream, factory = stream_and_model(stream, model)
        run_sweep(
            names(choice.methods) or [],
            space=choice.space,
            trials=choice.trials,
            objective=choice.objective,
            sampler=choice.sampler,
            pruner=choice.pruner,
            sampler_seed=choice.sampler_seed,
            stream=made_stream,
            seeds=runs.seeds,
            model=factory,
            training=training_of(stream, training),
            settings=parse_settings(choice.assignments or []),
            out=runs.out or Path("mgem-sweep"),
            jobs=jobs_of(stream, training, runs),
            checkpoints=runs.checkpoints,
            console=Console(),
        )
