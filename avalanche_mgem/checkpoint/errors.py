"""What can be wrong with a checkpoint."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A file that is no whole checkpoint, one of another run, or a strategy that cannot be saved.

    Nothing has been unpickled where it is raised for a file, and no strategy has been changed.
    """
