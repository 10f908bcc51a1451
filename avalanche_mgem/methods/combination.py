"""A strategy that is plain training and several plugins, each with settings of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from avalanche.training.supervised import Naive

from avalanche_mgem.results.describe import describe
from avalanche_mgem.strategies import option_names

Check = Callable[[Mapping[str, Any], int], None]


@dataclass(frozen=True)
class Part:
    """One of the plugins of a strategy.

    Args:
        name: of the method that it makes on its own.
        plugin: called with its settings, returns the plugin; a class or a function.
        check: of its settings, see `Method`.
        packages: installed ones whose versions decide what it does.
    """

    name: str
    plugin: Callable[..., Any]
    check: Check | None = None
    packages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Combination:
    """Makes strategies: Avalanche's Naive with a plugin for each part, in the order of the parts.

    Called with Naive's keyword arguments and the settings of the plugins. A setting that one part
    alone has goes by its name ("mask_fraction"); where several have one of that name, by the part's
    and its own ("mgem-d.seed").

    Raises:
        ValueError: what the plugins raise; of a setting that several parts have, the message begins
            with the part's name.
    """

    parts: tuple[Part, ...]

    def __call__(self, *, plugins: Any = (), **arguments: Any) -> Any:
        """Return a strategy; further plugins come after those of the parts."""
        made = []
        for part in self.parts:
            with self.named(part):
                made.append(part.plugin(**self._settings_of(part, arguments)))
        rest = {name: v for name, v in arguments.items() if name not in self.setting_names}
        return Naive(plugins=[*made, *(plugins or ())], **rest)

    @property
    def setting_names(self) -> set[str]:
        """The names by which settings are given."""
        return {self._name(part, own) for part in self.parts for own in option_names(part.plugin)}

    @property
    def packages(self) -> tuple[str, ...]:
        """Installed packages whose versions decide what the plugins do."""
        return tuple(sorted({package for part in self.parts for package in part.packages}))

    def setting_name(self, name: str) -> str:
        """Return the name of a setting that may be given with its part's name though it need not.

        Raises:
            ValueError: a name that several parts have, without saying which.
        """
        owner, dot, own = name.partition(".")
        for part in self.parts:
            if dot and part.name == owner and own in option_names(part.plugin):
                return self._name(part, own)
        several = [part.name for part in self.parts if name in option_names(part.plugin)]
        if len(several) > 1:
            choices = " or ".join(f"{part}.{name}" for part in several)
            raise ValueError(f"{name}: several parts have such a setting; name {choices}")
        return name

    def check(self, settings: Mapping[str, Any], n_experiences: int) -> None:
        """Check the settings of each part, as its method would."""
        for part in self.parts:
            if part.check is not None:
                with self.named(part):
                    part.check(self._settings_of(part, settings), n_experiences)

    def description(self) -> list[Any]:
        """Return the plugins as JSON values."""
        return [describe(part.plugin) for part in self.parts]

    def _name(self, part: Part, own: str) -> str:
        owners = [each for each in self.parts if own in option_names(each.plugin)]
        return own if len(owners) == 1 else f"{part.name}.{own}"

    def _settings_of(self, part: Part, settings: Mapping[str, Any]) -> dict[str, Any]:
        names = {self._name(part, own): own for own in option_names(part.plugin)}
        return {names[name]: value for name, value in settings.items() if name in names}

    @contextmanager
    def named(self, part: Part) -> Iterator[None]:
        """Put the part's name before an error about a setting that several parts have."""
        try:
            yield
        except ValueError as error:
            message = str(error)
            shared = [own for own in option_names(part.plugin) if self._name(part, own) != own]
            if any(message.startswith(own) for own in shared):
                raise ValueError(f"{part.name}.{message}") from error
            raise
