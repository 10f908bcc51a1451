"""Hostile values, what arguments make of them, and the call that must work or say which it was."""

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Odd:
    """An object of nobody's."""


def takes_anything(*_, **__):
    """Called with anything, returns nothing."""


# By names, because True == 1 and NaN != NaN.
HOSTILE = {
    "None": None,
    "True": True,
    "False": False,
    "0": 0,
    "1": 1,
    "3": 3,
    "-1": -1,
    "2**70": 2**70,
    "10**400": 10**400,
    "-10**400": -(10**400),
    "0.0": 0.0,
    "-0.0": -0.0,
    "0.5": 0.5,
    "2.0": 2.0,
    "-0.5": -0.5,
    "1e-320": 1e-320,
    "nan": float("nan"),
    "inf": float("inf"),
    "-inf": float("-inf"),
    "Fraction": Fraction(1, 2),
    "Decimal": Decimal("0.5"),
    "complex": 1j,
    "np.int64": np.int64(3),
    "np.uint8": np.uint8(3),
    "np.float32": np.float32(0.5),
    "np.nan": np.float32("nan"),
    "np.True": np.bool_(True),
    "np.str": np.str_("x"),
    "''": "",
    "'x'": "x",
    "blank": " \n",
    "a null": "a\0b",
    "a regex": "(",
    "'3'": "3",
    "'nan'": "nan",
    "b'x'": b"x",
    "Path": Path("nowhere") / "x.npz",
    "()": (),
    "[]": [],
    "[0]": [0],
    "[nan]": [float("nan")],
    "[None]": [None],
    "['x']": ["x"],
    "['']": [""],
    "[[]]": [[]],
    "set": {"x"},
    "{}": {},
    "{'x': 'y'}": {"x": "y"},
    "{'x': [None]}": {"x": [None]},
    "{0: 1}": {0: 1},
    "{None: None}": {None: None},
    "object": Odd(),
    "a class": Odd,
    "a function": takes_anything,
    "...": ...,
    "np [2]": np.array([0.5, np.nan]),
    "np []": np.zeros(0),
    "np object": np.array([None, "x"], dtype=object),
    "tensor []": torch.tensor(3),
    "tensor nan": torch.tensor(float("nan")),
    "tensor [0]": torch.zeros(0),
    "tensor [2]": torch.tensor([0.5, float("nan")]),
    "tensor [2, 2]": torch.ones(2, 2),
    "tensor int": torch.ones(2, 2, dtype=torch.int32),
    "tensor bool": torch.ones(2, dtype=torch.bool),
    "tensor complex": torch.ones(2, 2, dtype=torch.complex64),
    "tensor meta": torch.ones(2, 2, device="meta"),
    "tensor sparse": torch.eye(2).to_sparse(),
}


@dataclass(frozen=True)
class Fresh:
    """A value that is made anew for each call, because a call may change it."""

    make: Callable[[], Any]


@dataclass(frozen=True)
class Kind:
    """What an argument takes.

    good: must work. may: names of hostile values that may work; all others must be refused.
    more: hostile values of this kind's own.
    """

    good: tuple[Any, ...]
    may: frozenset[str] = frozenset()
    more: Mapping[str, Any] = field(default_factory=dict)

    def hostile(self):
        return {**HOSTILE, **self.more}

    def names(self):
        """What it may take, as text."""
        return "|".join(sorted(self.may))


def kind(*good, may="", more=None):
    return Kind(good, frozenset(filter(None, may.split("|"))), more or {})


@dataclass(frozen=True)
class Target:
    """A public name: how it is called, and what its arguments take.

    left: arguments that are not tried, with the reason. also: errors that it documents besides.
    called: what messages call an argument where it is not its name.
    """

    call: Callable[..., Any]
    arguments: Mapping[str, Kind]
    left: Mapping[str, str] = field(default_factory=dict)
    also: tuple[type[Exception], ...] = ()
    called: Mapping[str, str] = field(default_factory=dict)

    def needed(self):
        """The arguments without a default, with a good value each."""
        parameters = signature(self.call).parameters.values()
        names = [p.name for p in parameters if p.default is p.empty and p.name in self.arguments]
        return {name: self.arguments[name].good[0] for name in names}


WHOLE = "0|1|3|-1|np.int64|np.uint8"
REAL = "0|1|3|0.0|-0.0|0.5|2.0|1e-320|2**70|Fraction|np.int64|np.uint8|np.float32"


def refused(target, given):
    """Call the target; return None where it works, else the error, which must name an argument."""
    made = {name: v.make() if isinstance(v, Fresh) else v for name, v in given.items()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.call(**made)
    except (ValueError, TypeError, *target.also) as error:
        return error
    return None


def named(target, error, names):
    """Whether the message has one of the names as a word, or is documented to need none."""
    words = [word for name in names for word in {name, target.called.get(name, name)}]
    found = any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", str(error)) for word in words)
    return found or isinstance(error, target.also)
