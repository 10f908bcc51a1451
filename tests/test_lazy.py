"""Names that are imported on first use."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from avalanche_mgem.lazy import Lazy, option_names, place_of, resolved

PACKAGES = [
    "avalanche_mgem",
    *(
        f"avalanche_mgem.{name}"
        for name in ("evaluation", "experiment", "huggingface", "streams", "streams.text")
    ),
]
HEAVY = "{'torch', 'avalanche', 'scipy', 'sklearn', 'matplotlib', 'transformers', 'peft'}"


def printed(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_a_lazy_name_is_imported_when_it_is_called():
    path = Lazy("pathlib:Path")
    assert path("a") == Path("a")
    assert (path.resolve(), resolved(path), resolved(3)) == (Path, Path, 3)
    assert (path.module, path.name, path.is_ours) == ("pathlib", "Path", False)
    assert path == Lazy("pathlib:Path", options=("parts",))
    assert hash(path) == hash(Lazy("pathlib:Path", options=("parts",)))
    assert repr(path) == "Lazy(place='pathlib:Path')"


@pytest.mark.parametrize(
    "place", ["pathlib", "pathlib:", ":Path", "a b:c", "a:b.c", "1:a", 3, None]
)
def test_a_place_has_a_module_and_a_name(place):
    with pytest.raises(ValueError, match=r"place must be of the form 'package.module:name', got"):
        Lazy(place)


def test_options_are_said_borrowed_or_looked_up():
    assert option_names(Lazy("pathlib:Path", ("x", "y"))) == {"x", "y"}
    assert option_names(Lazy("a:b", Lazy("c:d", ("x",)))) == {"x"}
    assert option_names(Lazy("shutil:rmtree")) >= {"path", "ignore_errors"}
    assert option_names(lambda x, *, y, **rest: None) == {"x", "y"}


def test_the_place_of_a_class_is_where_it_is_defined():
    assert place_of(Lazy) == "avalanche_mgem.lazy:Lazy"
    assert place_of(place_of) == "avalanche_mgem.lazy:place_of"
    assert place_of(3) is None


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_hands_out_its_public_names(package):
    module = import_module(package)
    assert dir(module) == sorted(module.__all__)
    assert all(getattr(module, name) is not None for name in module.__all__)
    with pytest.raises(AttributeError, match=f"'{package}' has no attribute 'nothing'"):
        _ = module.nothing
    with pytest.raises(AttributeError, match="_nothing"):
        _ = module._nothing
    names = {}
    exec(f"from {package} import *", names)
    assert names.keys() - {"__builtins__"} == set(module.__all__)


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_imports_nothing_heavy(package):
    assert printed(f"import sys, {package}; print({HEAVY} & set(sys.modules))") == "set()"


def test_a_module_of_a_package_is_an_attribute():
    code = "import avalanche_mgem; print(avalanche_mgem.streams.places.KEYS[0])"
    assert printed(code) == "x_train"
