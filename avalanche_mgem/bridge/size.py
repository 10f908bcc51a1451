"""How much memory the rows will take, known before any training."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from avalanche.benchmarks import OnlineCLExperience
from torch import nn

from avalanche_mgem.model.gradients import row_dtypes

_CGROUP = Path("/sys/fs/cgroup/memory.max")


def rows_of_stream(experience: Any, closed: int, groups: int) -> int:
    """Return how many rows the last experience of the stream will have.

    closed: the rows there are by now. groups: the rows that a past task adds. An experience that
    does not say what stream it is of, or is a part of one, adds none.
    """
    stream: Any = getattr(experience, "origin_stream", None)
    if isinstance(experience, OnlineCLExperience) or not hasattr(stream, "__len__"):
        return closed
    return closed + groups * max(len(stream) - 1 - int(experience.current_experience), 0)


def check_size(
    rows: int,
    parameters: list[nn.Parameter],
    limit: int | None,
    where: str,
    *,
    half: bool = False,
) -> None:
    """Raise ValueError if the rows, the gradient and its projection do not fit into memory.

    limit: bytes; None: what the parameters' device has in all. half: rows in bfloat16, see
    `row_dtypes`; each of them is added up in float32, which is one vector more.
    """
    dtype, kept = row_dtypes(parameters, half=half)
    vectors = 2 if kept == dtype else 3
    positions = sum(p.numel() for p in parameters)
    needed = (rows * kept.itemsize + vectors * dtype.itemsize) * positions
    limit = device_memory(parameters[0].device) if limit is None else limit
    if limit is not None and needed > limit:
        raise ValueError(
            f"{rows} memory rows ({where}) over {positions:,} trainable parameters take "
            f"{needed / 2**30:,.1f} GiB, more than the {limit / 2**30:,.1f} GiB there are; use "
            f"fewer memory_groups, freeze parameters, or raise max_row_bytes"
        )


def device_memory(device: torch.device) -> int | None:
    """Return the bytes of memory that a device has in all; None where nobody tells."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type != "cpu" or "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    allowed = _CGROUP.read_text().strip() if _CGROUP.is_file() else "max"
    return min(installed, int(allowed)) if allowed.isdigit() else installed
