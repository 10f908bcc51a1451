"""Which Trainer calls a callback, and what of it no callback of ours goes with."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from accelerate.state import AcceleratorState
from transformers import TrainerCallback


def require_hook_before_step(name: str) -> None:
    """Raise ImportError where Trainers call nothing between the backward pass and the step."""
    if not hasattr(TrainerCallback, "on_pre_optimizer_step"):
        raise ImportError(
            f"{name} needs transformers >= 4.45: older Trainers call nothing between the backward "
            "pass and the step"
        )


def calling_trainer(callback: TrainerCallback) -> Any:
    """Return the Trainer whose event this is, from within a method that it has called.

    A Trainer hands its callbacks all it has but itself, and the loss that it trains with is a
    method of its own. So it is looked for among those who are calling.

    Raises:
        RuntimeError: it is no Trainer that calls.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        handler = getattr(caller, "callback_handler", None)
        if any(each is callback for each in getattr(handler, "callbacks", ())):
            return caller
        frame = frame.f_back
    raise RuntimeError(
        f"{type(callback).__name__} needs the loss of the Trainer that calls it, and none does: "
        "hand it to a Trainer's callbacks"
    )


def require_whole_gradients(args: Any, name: str, gathers: str) -> None:
    """Raise ValueError where no process has whole gradients of the whole model.

    Args:
        args: of the Trainer.
        name: of the callback.
        gathers: what the model's copies on other devices would not do.
    """
    if args.n_gpu > 1:
        raise ValueError(
            f"{name} trains on one device in each process, got {args.n_gpu} GPUs: the copies "
            f"of the model on the others would {gathers}; set CUDA_VISIBLE_DEVICES to one "
            "device, or start a process for each with torchrun"
        )
    kind = AcceleratorState().distributed_type.value
    if kind != "NO" and not kind.startswith("MULTI_"):
        raise ValueError(
            f"{name} needs whole parameters in every process, got {kind}: of sharded "
            "parameters there are no whole rows; use DistributedDataParallel (no fsdp or deepspeed)"
        )
