"""Options in groups: a dataclass a theme, which commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Any, get_type_hints


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command with the fields of its groups in place of the groups.

    A group is an argument whose type is a dataclass. Its fields, `Annotated[..., typer.Option()]`
    with a default, become keyword arguments, from which the group is made when it is called.

    Raises:
        ValueError: two fields or arguments of one name.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    flat: list[Parameter] = []
    for name, parameter in signature(command).parameters.items():
        own = parameter.replace(annotation=hints[name], kind=Parameter.KEYWORD_ONLY)
        flat += _parameters(groups[name]) if name in groups else [own]

    @wraps(command)
    def flattened(**given: Any) -> None:
        made = {
            name: kind(**{each.name: given.pop(each.name) for each in fields(kind)})
            for name, kind in groups.items()
        }
        command(**made, **given)

    # What typer looks at.
    flattened.__signature__ = Signature(flat)  # type: ignore[attr-defined]
    flattened.__annotations__ = {each.name: each.annotation for each in flat}
    return flattened


def _parameters(group: Any) -> Iterator[Parameter]:
    hints = get_type_hints(group, include_extras=True)
    for each in fields(group):
        kind = Parameter.KEYWORD_ONLY
        yield Parameter(each.name, kind, default=each.default, annotation=hints[each.name])
