"""What --verbose shows: the log of the package, on stderr."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

VERBOSE_HELP = "Show on stderr what happens on the way."

_FORMAT = "%(asctime)s %(name)s: %(message)s"


class _OnStderr(logging.Handler):
    """Writes to what sys.stderr is when it writes: a progress bar puts itself in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


@contextmanager
def log_lines(verbose: bool) -> Iterator[None]:
    """Show the package's log from INFO on while it is open, also that of worker processes."""
    logger = logging.getLogger("avalanche_mgem")
    if not verbose or any(isinstance(handler, _OnStderr) for handler in logger.handlers):
        yield
        return
    handler, before = _OnStderr(), (logger.level, logger.propagate)
    handler.setFormatter(logging.Formatter(_FORMAT, datefmt="%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # packages that are imported put handlers of their own on the root
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]
