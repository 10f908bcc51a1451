"""What models are asked about a text: for a class, or for an answer in words."""

from __future__ import annotations

from typing import Literal, get_args

Form = Literal["classification", "text-to-text", "causal"]
FORMS: tuple[str, ...] = get_args(Form)
