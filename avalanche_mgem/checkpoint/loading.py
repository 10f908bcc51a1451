"""Loading a strategy, to go on from its last finished experience."""

from __future__ import annotations

import os
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from torch.utils.hooks import RemovableHandle

from avalanche_mgem.arguments import as_file, flag
from avalanche_mgem.checkpoint.errors import CheckpointError
from avalanche_mgem.checkpoint.files import check_folder, previous_of
from avalanche_mgem.checkpoint.frame import open_frame
from avalanche_mgem.checkpoint.identity import check_strategy, compare, device_map
from avalanche_mgem.checkpoint.pickling import Surroundings, find_samples, load
from avalanche_mgem.checkpoint.places import find_places, undone_on_error
from avalanche_mgem.checkpoint.random_states import restore_random_states


def load_checkpoint(
    strategy: Any,
    path: str | os.PathLike[str],
    *,
    benchmark: Any = None,
    missing_ok: bool = True,
) -> tuple[Any, int]:
    """Bring a strategy to where `save_checkpoint` has left it.

    Example::

        strategy, start = load_checkpoint(strategy, "run.ckpt")
        for experience in stream.train_stream[start:]:
            strategy.train(experience)
            strategy.eval(stream.test_stream)
            save_checkpoint(strategy, "run.ckpt")

    A criterion, an optimiser or plugins that training itself replaces, as CoPE does its criterion,
    are those of the checkpoint, whatever class the strategy was made with: what is replaced is told
    from the code of the strategy's and the plugins' methods.

    On the CPU the run then gives what it would have given without a stop, to the bit. The strategy
    is filled in place, and so are its model (the modules that it was made with), optimiser, plugins
    and metrics: names for them in the program stay good. Random states are put back, so load last,
    right before the loop. All settings are those of the checkpoint. Loggers are those of the
    strategy, untouched; what they wrote after the checkpoint and before the stop is written again.
    What lay on an accelerator goes to the strategy's device.

    Random states are those of the process that saved. Several processes that load one file draw the
    same numbers from there on, as they did before if all began with one seed; with differing seeds
    the run goes on with other draws than without a stop.

    A CHECKPOINT IS A PICKLE: loading one runs whatever code is in it. Load only files that you, or
    somebody whom you trust with your account, have written. The digest in the file finds damage,
    not malice.

    Args:
        strategy: made anew as it was made for the run that was saved: the same class, plugins and
            metrics.
        path: of the file. Where it is damaged or gone and the one before it (path + ".previous")
            is whole, that is loaded, with a warning. So it is where it cannot be read.
        benchmark: the same as given to `save_checkpoint`.
        missing_ok: where there is no checkpoint, return the strategy as it is and 0.

    Returns:
        The strategy, and how many experiences it has finished: the index of the next.

    Raises:
        FileNotFoundError: there is no folder for it, or no file and missing_ok is False.
        OSError: the file cannot be read, and there is none before it.
        CheckpointError: the file is damaged, is no checkpoint or of another strategy, plugins,
            metrics or benchmark, before anything is unpickled; it is whole but does not load, as
            when a class is gone. The strategy is unchanged.
        ValueError: not a strategy.

    Warns:
        UserWarning: the checkpoint is of other versions of packages, or of other settings: sizes of
            minibatches, epochs, the optimiser's defaults, and the plain arguments of plugins (what
            is a number, text, flag, None or tuple of these, kept under the argument's name).
    """
    path = as_file("path", path)
    flag("missing_ok", missing_ok)
    check_strategy(strategy)
    check_folder(Path(path))  # or a slip of the pen would begin anew, and end at the first save
    with ExitStack() as stack:
        try:
            source, told, file = _open_newest(Path(path), stack)
        except FileNotFoundError:
            if not missing_ok:
                raise
            return strategy, 0
        plugins = compare(source, told, strategy)
        _fill(strategy, find_places(strategy, plugins), source, told, file, benchmark)
    return strategy, told["finished_experiences"]


def _open_newest(path: Path, stack: ExitStack) -> tuple[Path, dict[str, Any], BinaryIO]:
    """Open the newest whole checkpoint: where it is, what it tells, and the file at its payload."""
    try:
        return path, *stack.enter_context(open_frame(path))
    except (CheckpointError, OSError) as error:
        previous = previous_of(path)
        try:
            found = previous, *stack.enter_context(open_frame(previous))
        except FileNotFoundError:
            raise error from None
        except (CheckpointError, OSError) as another:
            raise CheckpointError(f"{path}: no whole checkpoint: {error}; {another}") from error
        gone = isinstance(error, FileNotFoundError)
        why = f"there is no {path} (to begin anew, remove {previous} too)" if gone else error
        warnings.warn(f"{why}; the checkpoint before it is loaded: {previous}", stacklevel=3)
        return found


def _fill(
    strategy: Any,
    places: dict[str, Any],
    source: Path,
    told: dict[str, Any],
    file: BinaryIO,
    benchmark: Any,
) -> None:
    now = device_map(source, told["device"], strategy.device)
    loggers = strategy.evaluator.loggers
    surroundings = Surroundings(places, loggers, find_samples(benchmark), now)
    # What an interrupted training has left; with the plugins emptied nobody could take it off.
    for plugin in strategy.plugins:
        if (release := getattr(plugin, "release_hooks", None)) is not None:
            release()
    with undone_on_error(places):
        try:
            value = load(file, surroundings)
        except CheckpointError:
            raise
        except Exception as error:  # unpickling runs what it finds, which may raise anything
            raise CheckpointError(
                f"{source} is whole, but does not load here: {type(error).__name__}: {error}"
            ) from error
        strategy.evaluator.loggers = loggers
        restore_random_states(value["random_states"])
    # Hooks are told apart by numbers that each process counts anew.
    RemovableHandle.next_id = max(RemovableHandle.next_id, value["next_hook"])
