"""Modules that were moved: what was written before they were is still read, and still imports.

Results and checkpoints name functions and classes by module. A run's key is made of such names, so
a class keeps the name that it was first described by; a checkpoint is unpickled by the name that
its class has now. Programs that import a module by its former name get the present one.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_PACKAGE = __name__.partition(".")[0]


def _pairs(former: str, now: str, names: str) -> dict[str, str]:
    """{former name: present name} of modules; "a:b" was a and is b, "a" has kept its name."""
    pairs = (name.partition(":") for name in names.split())
    return {f"{_PACKAGE}.{former}{a}": f"{_PACKAGE}.{now}{b or a}" for a, _, b in pairs}


_MOVED = {
    **_pairs("experiment.", "methods.", "method registry combining:combination"),
    **_pairs("experiment.", "methods.", "combination methods_file methods_table"),
    **_pairs("experiment.", "results.", "result store folders file_names describe variants"),
    **_pairs("experiment.", "results.", "summary statistics csv_files:csv"),
    **_pairs("experiment.text_", "experiment.text.", "checks models setup stream"),
    **_pairs("experiment.", "report.", "report_folder:folder report:markdown latex"),
    **_pairs("experiment.", "report.", "hparams:tensorboard"),
    **_pairs("experiment.", "report.figures.", "canvas plots:accuracy tradeoff heatmaps"),
    **_pairs("experiment.", "report.figures.", "forgetting theory_figures:theory"),
    **_pairs("streams.", "streams.vision.", "sources domains correlated corruptions"),
    **_pairs("streams.", "streams.vision.", "image_folders images"),
    **_pairs("streams.text_", "streams.text.", "answers batches files hub lengths plain"),
    **_pairs("streams.text_", "streams.text.", "prompts tasks tokens"),
    f"{_PACKAGE}.streams.digests": f"{_PACKAGE}.files",
}
# What has a package in its place now, by whose name it goes on importing.
_INTO_PACKAGES = {
    f"{_PACKAGE}.streams.vision.vision": f"{_PACKAGE}.streams.vision",
    f"{_PACKAGE}.streams.text.stream": f"{_PACKAGE}.streams.text",
}
_FORMER = {now: former for former, now in reversed(_MOVED.items())} | _INTO_PACKAGES


def former_module(module: str) -> str:
    """Return the name by which results have always told a module of ours; others as they are."""
    return _FORMER.get(module, module)


def present_module(module: str) -> str:
    """Return the name of the module that has what a checkpoint's `module` had."""
    return _MOVED.get(module, module)


def present_name(name: str) -> str:
    """Return the full name of a class now, from that which a checkpoint tells."""
    module, dot, rest = name.rpartition(".")
    return f"{present_module(module)}{dot}{rest}"


class _Finder(MetaPathFinder, Loader):
    """Imports a module by its former name as the present one, with a DeprecationWarning."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec for the modules of the table, None for all others."""
        return ModuleSpec(fullname, self) if fullname in _MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module as it is called now."""
        warnings.warn(
            f"{spec.name} is {_MOVED[spec.name]} now; the former name goes with version 0.3",
            DeprecationWarning,
            stacklevel=2,
        )
        return ModuleType(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Let the former name stand for the module as it is called now."""
        sys.modules[module.__name__] = import_module(_MOVED[module.__name__])


def follow_former_names() -> None:
    """Make former names of modules importable, once."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
