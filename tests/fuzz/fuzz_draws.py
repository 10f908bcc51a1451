"""Calls with several arguments at once, drawn by Hypothesis: good, hostile and of any shape."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from fuzz_values import named, refused
from hypothesis import strategies as st

_FILLS = [0.0, 1.0, -1.0, 0.5, float("nan"), float("inf"), 1e30]
_DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.uint8,
    torch.bool,
    torch.complex64,
]
# Sizes are small, or larger than any machine: what lies between is no question of arguments.
_WHOLE = st.integers(-3, 8) | st.sampled_from([2**63 - 1, 2**63, -(2**64), 10**30])
# What is written stays in the current folder.
_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="/\\~.:"), max_size=4)
_SCALARS = st.none() | st.booleans() | _WHOLE | st.floats() | _TEXT
_SHAPES = st.lists(st.integers(0, 4), max_size=4)


@dataclass(frozen=True)
class Drawn:
    """A value, and whether the argument takes it when the others have their usual ones."""

    value: Any
    good: bool = False


@st.composite
def tensors(draw):
    """A tensor of any shape, type and layout in memory."""
    shape = draw(_SHAPES)
    made = torch.arange(int(np.prod(shape)), dtype=torch.float64).reshape(shape)
    made = (draw(st.sampled_from(_FILLS)) * (made + 1)).to(draw(st.sampled_from(_DTYPES)))
    if draw(st.booleans()):
        made = made.movedim(0, -1) if shape else made.reshape(1)
    return made


@st.composite
def arrays(draw):
    """A NumPy array of any shape."""
    made = np.full(draw(_SHAPES), draw(st.sampled_from(_FILLS)))
    with np.errstate(invalid="ignore"):
        return made.astype(draw(st.sampled_from(["f4", "f8", "i8", "u1", "?", "c8", "O"])))


_ARRAYS = tensors() | arrays()
_ANYTHING = st.recursive(
    _SCALARS | _ARRAYS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT | _WHOLE, inner, max_size=2),
    max_leaves=4,
)


def values(kind):
    """What an argument is given: what it takes, what it must refuse, and what nobody thought of."""
    good = st.sampled_from(kind.good).map(lambda value: Drawn(value, good=True))
    is_array = any(isinstance(value, torch.Tensor | np.ndarray) for value in kind.good)
    drawn = _ARRAYS if is_array else _ANYTHING
    hostile = kind.hostile()
    known = st.sampled_from(sorted(hostile)).map(lambda label: hostile[label])
    return good | drawn.map(Drawn) | known.map(Drawn)


@st.composite
def calls(draw, table):
    """A name of the table, and what some of its arguments are given."""
    name = draw(st.sampled_from(sorted(table)))
    takes = table[name].arguments
    some = st.lists(st.sampled_from(sorted(takes)), unique=True, max_size=5)
    chosen = draw(some) if takes else []
    return name, {argument: draw(values(takes[argument])) for argument in chosen}


def works_or_says_what_is_wrong(target, given):
    """Assert it of one call."""
    good = {name: drawn.value for name, drawn in given.items() if drawn.good}
    others = {name: drawn.value for name, drawn in given.items() if not drawn.good}
    error = refused(target, {**target.needed(), **good, **others})
    if error is None or named(target, error, others):
        return
    # Two good ones that do not go together are refused too, and perhaps before the others.
    clash = refused(target, {**target.needed(), **good})
    assert clash is not None, f"names none of {list(others)}: {error!r}"
    assert named(target, clash, good), f"names none of {list(good)}: {clash!r}"
