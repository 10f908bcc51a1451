"""What a callback keeps in a Trainer's checkpoint, as text in its `trainer_state.json`.

The folder that a Trainer resumes from is known to no callback, so a file of our own there would not
be found. What is read from the text is tensors and Python's own types alone: it runs no code.
"""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch

from avalanche_mgem.arguments import as_path

_FAST = 1  # of zlib's levels: token ids shrink to a tenth at any


def to_text(state: object) -> str:
    """Return tensors in containers of Python's own as ASCII text."""
    file = io.BytesIO()
    torch.save(state, file)
    return base64.b64encode(zlib.compress(file.getvalue(), _FAST)).decode("ascii")


def from_text(text: str) -> Any:
    """Return what `to_text` was given, its tensors on the CPU."""
    file = io.BytesIO(zlib.decompress(base64.b64decode(text)))
    return torch.load(file, map_location="cpu", weights_only=True)


def keepable(arguments: Mapping[str, object]) -> tuple[dict[str, Any], list[str]]:
    """Return the arguments that JSON knows, and the names of those that are objects."""
    kept: dict[str, Any] = {}
    objects = []
    for name, value in arguments.items():
        try:
            kept[name] = json.loads(json.dumps(value, default=_number))
        except TypeError:
            objects.append(name)
    return kept, objects


def _number(value: object) -> int | float:
    """Return one of NumPy's numbers, of which JSON knows nothing, as Python's own."""
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    raise TypeError(f"{type(value).__name__} is no number")


def attributes_in(checkpoint: Path, name: str) -> dict[str, Any]:
    """Return what a Trainer's checkpoint keeps of the callback of this name.

    Raises:
        FileNotFoundError: the folder has no state of a Trainer.
        ValueError: nothing is kept there of such a callback.
    """
    file = checkpoint / "trainer_state.json"
    if not file.is_file():
        raise FileNotFoundError(f"checkpoint: {checkpoint} has no trainer_state.json")
    callbacks = json.loads(file.read_text(encoding="utf-8")).get("stateful_callbacks", {})
    if name not in callbacks:
        raise ValueError(f"checkpoint: {file} keeps nothing of a {name}")
    found = callbacks[name]
    attributes: dict[str, Any] = (found[0] if isinstance(found, list) else found)["attributes"]
    return attributes


class KeepsArguments:
    """What a Trainer's checkpoint keeps of a callback: its arguments, and attributes of it."""

    _arguments: dict[str, Any]  # as they were given

    def _kept_state(self, **attributes: object) -> dict[str, Any]:
        """Return what transformers wants of `state`."""
        arguments, objects = keepable(self._arguments)
        return {"args": arguments, "attributes": {**attributes, "objects": objects}}

    @property
    def objects(self) -> list[str]:
        """The arguments that a checkpoint cannot keep, because they are objects."""
        return keepable(self._arguments)[1]

    @objects.setter
    def objects(self, names: list[str]) -> None:
        if names:
            raise ValueError(
                f"{', '.join(names)}: the checkpoint was made by a callback whose arguments of "
                "this name are objects, which no checkpoint of a Trainer keeps: leave "
                "restore_callback_states_from_checkpoint out, make the callback as it was, and "
                "call its load(checkpoint) before train()"
            )

    def load(self, checkpoint: str) -> None:
        """Take up what a Trainer's checkpoint keeps, before `train()` resumes from it.

        Args:
            checkpoint: the folder, "checkpoint-500" and the like.

        Raises:
            FileNotFoundError: the folder has no state of a Trainer.
            ValueError: nothing is kept there of such a callback.
        """
        kept = attributes_in(as_path("checkpoint", checkpoint), type(self).__name__)
        for name, value in kept.items():
            if name != "objects":
                setattr(self, name, value)
