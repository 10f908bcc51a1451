"""Methods put together: "replay+migu" is Avalanche's Naive with the plugins of both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from avalanche_mgem.lazy import Lazy, option_names, place_of, resolved
from avalanche_mgem.methods import known
from avalanche_mgem.methods.method import Check, Method
from avalanche_mgem.results.describe import describe

JOINT = "+"

_LORA = (known.LORA_PLUGIN, known.INCLORA_PLUGIN, known.OLORA_PLUGIN)
# What of a hybrid's settings scales steps.
_SCALING = ("magnitude_decay", "low_magnitude", "magnitude")
# Of the paper (arXiv 2406.17245): less is masked where something else holds the model as well.
_MASKED_BESIDE = ((known.OLORA_PLUGIN, 0.1), (known.REPLAY_PLUGIN, 0.4))


def agem_plugin(patterns_per_exp: int, sample_size: int) -> Any:
    """Return Avalanche's AGEMPlugin by the names that the settings of its strategy have."""
    from avalanche.training.plugins import AGEMPlugin

    return AGEMPlugin(patterns_per_exp, sample_size)


def gem_plugin(patterns_per_exp: int, memory_strength: float = 0.5) -> Any:
    """Return Avalanche's GEMPlugin by the names that the settings of its strategy have."""
    from avalanche.training.plugins import GEMPlugin

    return GEMPlugin(patterns_per_exp, memory_strength)


_PLUGIN_OF: dict[str, Callable[..., Any]] = {
    known.REPLAY.place: known.REPLAY_PLUGIN,
    known.EWC.place: known.EWC_PLUGIN,
    known.LWF.place: known.LWF_PLUGIN,
    known.AGEM.place: agem_plugin,
    known.GEM.place: gem_plugin,
    known.SI.place: known.SI_PLUGIN,
    known.MGEM.place: known.MGEM_PLUGIN,
    known.MIGU.place: known.MIGU_PLUGIN,
    known.HYBRID.place: known.HYBRID_PLUGIN,
}


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

    base: called in place of Naive, a subclass of it.

    Raises:
        ValueError: what the plugins raise; of a setting that several parts have, the message begins
            with the part's name.
    """

    parts: tuple[Part, ...]
    base: Callable[..., Any] = known.NAIVE

    def __call__(self, *, plugins: Any = (), **arguments: Any) -> Any:
        """Return a strategy; further plugins come after those of the parts."""
        made = []
        arguments = {**self.implied(arguments), **arguments}
        for part in self.parts:
            with self.named(part):
                made.append(part.plugin(**self._settings_of(part, arguments)))
        rest = {name: v for name, v in arguments.items() if name not in self.setting_names}
        return self.base(plugins=[*made, *(plugins or ())], **rest)

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

    def implied(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return what follows from settings: mGEM restricts updates where a hybrid scales them."""
        hybrids = [part for part in self.parts if _is(part, known.HYBRID_PLUGIN)]
        own = self._settings_of(hybrids[0], settings) if hybrids else {}
        scales = own.get("mode") == "decay" or any(own.get(name) for name in _SCALING)
        restricts = any(_is(part, known.MGEM_PLUGIN) for part in self.parts)
        return {"restrict": "update"} if scales and restricts else {}

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


def combined(name: str, methods: Sequence[Method]) -> Method:
    """Return the method that has the plugins of all `methods`, under the name `name`.

    Adapters come first, because they add parameters; then what has a memory or a penalty, or scales
    steps; then what projects the gradient, mGEM behind GEM and A-GEM; MIGU last, so that nothing
    moves what it holds still. The settings are those of the methods, but for two: MIGU's
    mask_fraction, which beside replay or O-LoRA is the paper's for that, and mGEM's restrict, which
    is "update" behind a hybrid that scales steps: a restricted gradient may leave the cone when its
    step is scaled. A setting that several of them have goes by method and name, as "mgem-d.seed".

    Raises:
        ValueError: a method that is no plugin to plain training, a plugin that comes twice.
    """
    owned = {part.name: (part, method) for method in methods for part in _parts(name, method)}
    parts = sorted((part for part, _ in owned.values()), key=_place)
    _require_one_of_each(name, methods, parts)
    strategy = Combination(tuple(parts))
    settings = {
        strategy.setting_name(f"{part.name}.{own}"): value
        for part, method in owned.values()
        for own, value in method.settings.items()
    }
    description = " and ".join(method.name for method in methods) + " together"
    space = {
        strategy.setting_name(f"{part.name}.{own}"): dimension
        for part, method in owned.values()
        for own, dimension in method.space.items()
    }
    settings = {**settings, **_less_masked(parts)}
    settings |= strategy.implied(settings)
    return Method(name, strategy, settings, description, strategy.check, space=space)


def _parts(name: str, method: Method) -> tuple[Part, ...]:
    strategy = method.strategy
    if isinstance(strategy, Combination):
        return strategy.parts
    place = place_of(strategy)
    plugin = None if place is None else _PLUGIN_OF.get(place)
    if plugin is None:
        plugin = getattr(_looked_at(strategy), "PLUGIN", None)
    if plugin is None:
        raise ValueError(
            f"methods: {name!r} cannot be had, because {method.name!r} is no plugin to plain "
            "training; what is: replay, ewc, si, lwf, agem, gem, initialized, frozen, hybrid, and "
            "what begins with mgem, migu or decay or ends with lora"
        )
    return (Part(method.name, plugin, method.check),)


def _place(part: Part) -> int:
    if _is(part, *_LORA):
        return 0
    if _is(part, known.MIGU_PLUGIN):
        return 4
    if _is(part, known.MGEM_PLUGIN):
        return 3
    return 2 if part.plugin in (agem_plugin, gem_plugin) else 1


def _is(part: Part, *kinds: Lazy) -> bool:
    """Whether the part's plugin is one of these, or a subclass of one."""
    if place_of(part.plugin) in [kind.place for kind in kinds]:
        return True
    plugin = _looked_at(part.plugin)
    return isinstance(plugin, type) and issubclass(plugin, tuple(map(resolved, kinds)))


def _looked_at(value: Any) -> Any:
    """Return what a user's own `Lazy` stands for; of ours and of Avalanche's the place says it."""
    return value if isinstance(value, Lazy) and value.is_ours else resolved(value)


def _require_one_of_each(name: str, methods: Sequence[Method], parts: Sequence[Part]) -> None:
    kinds = ["lora" if _is(part, *_LORA) else place_of(part.plugin) for part in parts]
    if len(parts) < len(methods) or any(kinds.count(kind) > 1 for kind in kinds):
        raise ValueError(
            f"methods: {name!r} cannot be had, because two of its parts are the same method or "
            "variants of one"
        )


def _less_masked(parts: Sequence[Part]) -> Mapping[str, float]:
    if not any(_is(part, known.MIGU_PLUGIN) for part in parts):
        return {}
    beside = [share for kind, share in _MASKED_BESIDE if any(_is(part, kind) for part in parts)]
    return {"mask_fraction": beside[0]} if beside else {}
