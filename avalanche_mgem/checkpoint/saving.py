"""Saving a strategy between two experiences."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.hooks import RemovableHandle

from avalanche_mgem.arguments import as_file
from avalanche_mgem.checkpoint.files import replace_checkpoint
from avalanche_mgem.checkpoint.frame import write_frame
from avalanche_mgem.checkpoint.identity import check_strategy, identity
from avalanche_mgem.checkpoint.pickling import Surroundings, dump, find_samples
from avalanche_mgem.checkpoint.places import find_places
from avalanche_mgem.checkpoint.random_states import random_states


def save_checkpoint(strategy: Any, path: str | os.PathLike[str], *, benchmark: Any = None) -> None:
    """Save a strategy after an experience, for `load_checkpoint`.

    The file has the strategy with everything in it (model, optimiser, plugins and their memories,
    metrics, counters) and the random states of Python, numpy, torch and CUDA, of which none is
    drawn from. Loggers stay out of it: they belong to the process.

    It is written beside path, synced, and renamed, so that a kill or a power cut at any moment
    leaves a whole checkpoint at path; the one before is kept at path + ".previous". Something at
    path that is no whole checkpoint is put aside, at path + ".damaged", with a warning.

    Several processes that train together need one file, which one of them writes; it has the random
    states of that one, so begin all with one seed. Processes that write each need paths of their
    own; each loads its own, then with its own random states.

    Args:
        strategy: of Avalanche, between `train` and `eval` calls.
        path: of the file, in a folder that exists.
        benchmark: leave out the samples of this benchmark, stream or list of data sets, which
            memories of samples (replay, A-GEM, GDumb) refer to; `load_checkpoint` then needs the
            same. None: they are written where something refers to them, and with a memory of a few
            samples often the whole data set does.

    Raises:
        ValueError: not a strategy.
        RuntimeError: in the midst of training or of an evaluation.
        CheckpointError: something in the strategy cannot be pickled; it is named. The checkpoint at
            path stays what it was.
        OSError: the file cannot be written; likewise.
    """
    path = as_file("path", path)
    check_strategy(strategy)
    _check_idle(strategy)
    surroundings = Surroundings(
        find_places(strategy), strategy.evaluator.loggers, find_samples(benchmark)
    )
    finished = int(strategy.clock.train_exp_counter)
    told = {**identity(strategy), "finished_experiences": finished}
    value = {
        "strategy": strategy,
        "random_states": random_states(),
        "next_hook": RemovableHandle.next_id,
    }
    payload = partial(dump, value, surroundings=surroundings)
    replace_checkpoint(Path(path), lambda file: write_frame(file, told, payload))


def _check_idle(strategy: Any) -> None:
    if getattr(strategy, "_is_fitted", False):
        # JointTraining leaves what the others' `train` clears in the end: all data, concatenated.
        strategy._train_cleanup()
    if strategy.experience is not None:
        raise RuntimeError(
            "save_checkpoint is for between two experiences, after `strategy.train` or "
            "`strategy.eval` has returned; this strategy is in the midst of one"
        )
