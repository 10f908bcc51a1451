"""What can be wrong with a comparison, as far as that is known before Avalanche is imported.

`avalanche_mgem.experiment.checks` finds the rest: it makes the stream, and every strategy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from avalanche_mgem.experiment.configuration import NamedStream, RunSpecification
from avalanche_mgem.experiment.text.stream import TextStream
from avalanche_mgem.methods.method import Memory, Method
from avalanche_mgem.streams.naming import parse_stream_name
from avalanche_mgem.streams.places import LEAST_AUGMENTED

# What constructors raise for settings that they do not take.
REFUSALS = (ValueError, TypeError, AssertionError, AttributeError, LookupError)


def check_early(specifications: Sequence[RunSpecification]) -> None:
    """Check the stream, and every method's settings where the stream's length is known.

    Raises:
        ValueError: data that are not there, arguments of the stream out of range, a setting that
            the method refuses (METHOD.SETTING).
    """
    stream = specifications[0].stream if specifications else None
    if not isinstance(stream, NamedStream | TextStream):
        return  # nobody knows how long it is
    length = stream.check()
    if specifications[0].training.augment:
        check_augmented(stream)
    for specification in {s.method.name: s for s in specifications}.values():
        check_settings(specification.method, specification.training.memory, length)


def check_augmented(stream: NamedStream | TextStream) -> None:
    """Raise ValueError for a stream whose samples cannot be cropped and flipped."""
    if isinstance(stream, TextStream):
        raise ValueError(f"augment is for images, got stream={stream.name!r}")
    kind, source = parse_stream_name(stream.name)
    if kind == "permuted":
        raise ValueError(
            f"augment: crops and flips mean nothing where pixels are permuted, got "
            f"stream={stream.name!r}"
        )
    size = stream.arguments.get("image_size") or (8 if source == "digits" else LEAST_AUGMENTED)
    if size < LEAST_AUGMENTED:
        raise ValueError(
            f"augment needs images of at least {LEAST_AUGMENTED} x {LEAST_AUGMENTED} pixels, but "
            f"those of stream={stream.name!r} have {size} x {size}"
        )


def check_settings(method: Method, budget: int, n_experiences: int) -> None:
    """Raise ValueError, with the method's name, for settings that its check refuses."""
    if method.check is None:
        return
    try:
        method.check(method.resolved_settings(budget, n_experiences), n_experiences)
    except REFUSALS as error:
        raise ValueError(refusal(method, budget, error)) from error


def refusal(method: Method, budget: int, error: BaseException) -> str:
    """Name the method and, where the message begins with it or means it, the setting."""
    message = str(error) or type(error).__name__
    names = {*method.settings, *method.setting_names}
    about = next((name for name in sorted(names) if _begins_with(message, name)), None)
    text = f"{method.name}.{message}" if about else f"{method.name}: {message}"
    return text + _budget_hint(method.settings, message, budget)


def _begins_with(message: str, name: str) -> bool:
    return message.startswith(name) and not message[len(name) :][:1].isidentifier()


def _budget_hint(settings: Mapping[str, Any], message: str, budget: int) -> str:
    told = [k for k, v in settings.items() if isinstance(v, Memory) and k in message]
    return f" ({' and '.join(told)}: from memory={budget})" if told else ""
