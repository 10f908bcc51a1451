"""How a strategy is pickled: torch's format, by a pickler that knows what must not be copied.

- Classes and functions that have a name are written by it. dill writes some of them by value (those
  of scripts, and on current torch all optimisers), and a class that is a copy of the program's own
  fails every isinstance.
- Parts that a user may hold too (the model, plugins, metrics) are filled in place.
- Loggers stay what they are in the process that loads, and samples of a benchmark are left out.
- An iterator that a generator makes and that has not begun is made again.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import FunctionType, GeneratorType, SimpleNamespace
from typing import Any, BinaryIO

import dill
import torch

from avalanche_mgem.checkpoint.errors import CheckpointError
from avalanche_mgem.checkpoint.frame import Sink
from avalanche_mgem.checkpoint.places import class_name, empty, lasting_plugins
from avalanche_mgem.checkpoint.samples import Samples, fingerprint_of, holds_samples
from avalanche_mgem.moved import present_module

_PROTOCOL = 4
Reduce = Callable[[Any], Any]  # as pickle.Pickler.reducer_override


@dataclass
class Surroundings:
    """What a strategy is taken out of, or put back into.

    places: the objects that are filled in place. loggers: those that stay as they are. samples:
    what is left out. device: what a device of the pickle is now.
    """

    places: Mapping[str, Any]
    loggers: Sequence[Any]
    samples: Samples
    device: Callable[[str], str] = str


_surroundings: ContextVar[Surroundings] = ContextVar("surroundings")


def dump(value: Any, file: Sink, surroundings: Surroundings) -> None:
    """Write a value.

    Raises:
        CheckpointError: a part of it cannot be pickled; it is named.
    """
    with _explained(surroundings):
        _save(value, file, _Reducer(surroundings))


def load(file: BinaryIO, surroundings: Surroundings) -> Any:
    """Read what `dump` has written."""

    def to_device(storage: Any, location: str) -> Any:
        place: Any = torch.serialization.default_restore_location
        return place(storage, surroundings.device(location))

    token = _surroundings.set(surroundings)
    try:
        reader = SimpleNamespace(__name__=__name__, Unpickler=_Unpickler, load=dill.load)
        return torch.load(file, to_device, reader, weights_only=False)
    finally:
        _surroundings.reset(token)


class _Unpickler(dill.Unpickler):
    """Finds classes where they are now, of checkpoints that are older than a move."""

    def find_class(self, module: str, name: str) -> Any:
        return super().find_class(present_module(module), name)


def find_samples(benchmark: Any) -> Samples:
    """Return the samples that a benchmark, a stream or data sets hold; of None, none.

    Raises:
        CheckpointError: a part of it cannot be pickled.
    """
    if benchmark is None:
        return Samples(None)
    found: dict[int, Any] = {}
    reducer = _Reducer(Surroundings({}, (), Samples(None)))

    def look(part: Any) -> Any:
        if holds_samples(part):
            found[id(part)] = part
            return _NOTHING
        if type(part) is list and len(part) > 99 and set(map(type, part)) <= {int, float}:
            return _NOTHING  # labels and indices, of which a long one takes a second
        return reducer(part)

    try:
        _save(benchmark, _Nowhere(), look)
    except Exception as error:  # a user's own __reduce__ may raise anything
        raise CheckpointError(f"benchmark: its samples cannot be told apart: {error}") from error
    return Samples(found.values())


_NOTHING = (str, ())


def _save(value: Any, file: Sink, reduce: Reduce) -> None:
    # torch.save takes a module and makes a subclass of its Pickler.
    namespace = {"reducer_override": staticmethod(reduce)}
    pickler = type("Pickler", (dill.Pickler,), namespace)
    module = SimpleNamespace(__name__=__name__, Pickler=pickler)
    sink: Any = file  # of the methods of a file, torch needs two
    torch.save(value, sink, pickle_module=module, pickle_protocol=_PROTOCOL)


@dataclass
class _Reducer:
    surroundings: Surroundings
    _places: dict[int, str] = field(init=False)
    _loggers: dict[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self._places = {id(part): place for place, part in self.surroundings.places.items()}
        self._loggers = {id(each): i for i, each in enumerate(self.surroundings.loggers)}

    def __call__(self, part: Any) -> Any:
        if isinstance(part, type | FunctionType):
            return _name(part)
        if id(part) in self._loggers:
            return _logger, (self._loggers[id(part)],)
        if id(part) in self._places:
            return _in_place(part, self._places[id(part)])
        if (number := self.surroundings.samples.number(part)) is not None:
            return _sample, (number, fingerprint_of(part))
        return _special(part)


def _special(part: Any) -> Any:
    if isinstance(part, torch.device):
        return _device, (str(part),)
    if isinstance(part, torch.Generator):
        return _generator, (part.device, part.get_state())
    return _not_begun(part) if isinstance(part, GeneratorType) else NotImplemented


def _name(part: Any) -> Any:
    """The name of a class or function, where it is found by it."""
    found: Any = sys.modules.get(part.__module__)
    for name in part.__qualname__.split("."):
        found = getattr(found, name, None)
    return part.__qualname__ if found is part else NotImplemented


def _in_place(part: Any, place: str) -> Any:
    reduced = part.__reduce_ex__(_PROTOCOL)
    if not isinstance(reduced, tuple) or any(items is not None for items in reduced[3:]):
        return NotImplemented  # a container; what is in it would be there twice
    constructor, arguments, *state = reduced
    if place == "evaluator":
        state = [{**state[0], "loggers": []}]
    if place == "strategy":
        state = [{**state[0], "plugins": lasting_plugins(part)}]
    return _filled, (place, constructor, arguments), *state[:1]


def _filled(place: str, constructor: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """The object at a place, to be filled; a new one where something else is there."""
    new = constructor(*arguments)
    here = _surroundings.get().places.get(place)
    if here is None or class_name(here) != class_name(new):
        return new
    empty(here)
    return here


def _logger(number: int) -> Any:
    loggers = _surroundings.get().loggers
    if number >= len(loggers):
        raise CheckpointError(
            f"a part of the strategy has its evaluator's logger {number}, and there are only "
            f"{len(loggers)}: make the strategy with the same loggers"
        )
    return loggers[number]


def _sample(number: int, fingerprint: str) -> Any:
    return _surroundings.get().samples.find(number, fingerprint)


def _device(name: str) -> torch.device:
    return torch.device(_surroundings.get().device(name))


def _generator(device: torch.device, state: torch.Tensor) -> torch.Generator:
    generator = torch.Generator(device)
    generator.set_state(state.cpu())
    return generator


def _not_begun(generator: Any) -> Any:
    """How a generator is made again of which nothing has been taken.

    It is `iter(x)`, or what a function of a module has returned, such as Avalanche's `cycle`.
    """
    if inspect.getgeneratorstate(generator) != inspect.GEN_CREATED:
        return NotImplemented
    made_from = inspect.getgeneratorlocals(generator)
    owner = made_from.get("self")
    method = getattr(type(owner), "__iter__", None)
    if len(made_from) == 1 and getattr(method, "__code__", None) is generator.gi_code:
        return iter, (owner,)
    code = generator.gi_code
    function = generator.gi_frame.f_globals.get(generator.__name__)
    by_name = set(made_from) == set(inspect.getargs(code).args) and not code.co_posonlyargcount
    if getattr(function, "__code__", None) is code and by_name:
        return _called, (function, made_from)
    return NotImplemented


def _called(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    return function(**arguments)


class _Nowhere:
    def write(self, data: Any, /) -> int:
        return memoryview(data).nbytes

    def flush(self) -> None:
        pass


@contextmanager
def _explained(surroundings: Surroundings) -> Iterator[None]:
    """Name what cannot be pickled, where something cannot be."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # a user's own __reduce__ may raise anything
        places = surroundings.places
        culprits = [name for place in places for name in _failing(place, surroundings)]
        which = ", ".join(culprits) or "the strategy"
        raise CheckpointError(f"cannot be saved, because of {which}: {error}") from error


def _failing(place: str, surroundings: Surroundings) -> Iterator[str]:
    """The attributes of the object at a place that cannot be pickled on their own account."""
    others = {id(part) for part in surroundings.places.values()}  # each is looked at itself
    reducer = _Reducer(surroundings)
    part = surroundings.places[place]
    for attribute, value in vars(part).items():
        try:
            _save(value, _Nowhere(), lambda p: _NOTHING if id(p) in others else reducer(p))
        except Exception:
            yield f"{place}.{attribute} ({type(part).__name__})"
