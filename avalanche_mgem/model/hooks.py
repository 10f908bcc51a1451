"""What a hook of ours is in a copy of the module that it is on: nothing."""

from __future__ import annotations

from collections.abc import Callable


def no_hook() -> Callable[..., None]:
    """Return the hook that stands for another in a copy."""
    return _do_nothing


def _do_nothing(*arguments: object) -> None:
    """Stand for a hook in a copy."""
