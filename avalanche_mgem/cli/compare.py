"""avalanche-mgem compare."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from avalanche_mgem.cli.errors import errors_told
from avalanche_mgem.cli.groups import with_groups
from avalanche_mgem.cli.logs import log_lines
from avalanche_mgem.cli.options import (
    LogOptions,
    MethodOptions,
    ModelOptions,
    RunOptions,
    StreamOptions,
    TrainingOptions,
    names,
)


@with_groups
def compare(
    methods: MethodOptions,
    stream: StreamOptions,
    model: ModelOptions,
    training: TrainingOptions,
    runs: RunOptions,
    log: LogOptions,
) -> None:
    """Train methods on a stream and show how they compare; run again, it continues."""
    with errors_told(), log_lines(log.verbose):
        # Imported here, so that --help waits for nothing; what is wrong is told before Avalanche,
        # which takes seconds, is imported.
        from avalanche_mgem.experiment import METHODS, load_methods, methods_table

        file = methods.methods_file
        own = {} if file is None else {method.name: method for method in load_methods(file)}
        if methods.list_methods:
            Console().print(methods_table({**METHODS, **own}.values()))
            return
        from avalanche_mgem.cli.setup import jobs_of, stream_and_model, training_of, usual_methods
        from avalanche_mgem.experiment import compare as run_comparison
        from avalanche_mgem.methods.registry import parse_settings

        made_stream, factory = stream_and_model(stream, model)
        chosen = names(methods.methods) or list(dict.fromkeys([*usual_methods(stream), *own]))
        run_comparison(
            [own.get(name, name) for name in chosen],
            stream=made_stream,
            seeds=runs.seeds,
            training=training_of(stream, training),
            model=factory,
            settings=parse_settings(methods.assignments or []),
            out=runs.out or Path("mgem-compare"),
            jobs=jobs_of(stream, training, runs),
            checkpoints=runs.checkpoints,
            console=Console(),
        )
