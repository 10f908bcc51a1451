"""The global random states of Python, numpy and torch, to keep and to put back."""

from __future__ import annotations

import random
import warnings
from typing import Any

import numpy as np
import torch


def random_states() -> dict[str, Any]:
    """Return the states of all global generators, as values that no device mapping touches."""
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # asking starts the GPU
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state().numpy().copy(),
        "cuda": [state.numpy().copy() for state in torch.cuda.get_rng_state_all()] if used else [],
        "registered": {name: each["save_state"]() for name, each in _registered().items()},
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Put the states back; warns of those that there is nothing here for."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(torch.from_numpy(states["torch"]))
    devices = torch.cuda.device_count() if states["cuda"] else 0
    for index, state in enumerate(states["cuda"][:devices]):
        torch.cuda.set_rng_state(torch.from_numpy(state), index)
    registered = _registered()
    for name, state in states["registered"].items():
        if name in registered:
            registered[name]["load_state"](state)
    lost = [f"cuda:{index}" for index in range(devices, len(states["cuda"]))]
    lost += [name for name in states["registered"] if name not in registered]
    if lost:
        warnings.warn(
            f"the checkpoint has random states of {', '.join(lost)}, which are not here: the run "
            "will not draw the numbers that it would have drawn",
            stacklevel=4,
        )


def _registered() -> dict[str, Any]:
    """What users have told Avalanche's RNGManager of, beyond the generators above."""
    from avalanche.training.determinism.rng_manager import RNGManager

    own = {"torch", "torch.cuda", "numpy", "random"}
    return {k: each for k, each in RNGManager.random_generators.items() if k not in own}
