"""What a classifier of texts may be told by name, apart from torch, so that it is checked early."""

from __future__ import annotations

from typing import Literal

Heads = Literal["multi", "growing", "single"]
Pooling = Literal["auto", "mean", "first", "last", "pooler"]
