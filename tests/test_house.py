"""The plan of the house, kept from the syntax tree: who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import avalanche_mgem

PACKAGE = Path(avalanche_mgem.__file__).parent
# From the ground. What is on one floor does not import its neighbours, except within a package.
FLOORS = [
    {"__init__"},
    {"arguments", "files", "lazy", "moved"},
    {"restriction", "theory", "checkpoint"},
    {"model"},
    {"bridge"},
    {"evaluation", "streams"},
    {"plugins"},
    {"strategies"},
    {"huggingface", "results"},
    {"methods", "report"},
    {"experiment"},
    {"cli"},
]
FILES = sorted(PACKAGE.rglob("*.py"))


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path):
    """Full names of all modules that a file imports, also inside functions and for types."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield node.module


def part(module):
    """The part of the house that a module of ours belongs to: its first name below the package."""
    return module.split(".")[1] if "." in module else "__init__"


def floor(module):
    return next(level for level, names in enumerate(FLOORS) if part(module) in names)


def ours(path):
    return [m for m in imports(path) if m.split(".")[0] == "avalanche_mgem"]


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_run_downwards(path):
    if path == PACKAGE / "__init__.py":
        return  # it names what others have, and imports it on first use
    here = module_name(path)
    for other in ours(path):
        same_part = part(other) == part(here)
        assert same_part or floor(other) < floor(here), f"{here} imports {other}"


@pytest.mark.parametrize("package", ["restriction", "model"])
def test_restriction_and_model_know_nothing_of_avalanche(package):
    for path in (PACKAGE / package).glob("*.py"):
        assert not [m for m in imports(path) if m.split(".")[0] == "avalanche"]


def test_plugins_do_not_import_each_other():
    for path in (PACKAGE / "plugins").glob("*.py"):
        if path.name != "__init__.py":
            assert not [m for m in ours(path) if m.startswith("avalanche_mgem.plugins")]


def test_there_are_no_cycles():
    edges = {module_name(path): set(ours(path)) for path in FILES}
    edges.pop("avalanche_mgem")
    done, open_ = set(), []

    def visit(module):
        assert module not in open_, f"cycle: {' -> '.join([*open_, module])}"
        if module in edges and module not in done:
            open_.append(module)
            for other in edges[module]:
                if other != module:
                    visit(other)
            done.add(open_.pop())

    for module in edges:
        visit(module)


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, avalanche_mgem; dir(avalanche_mgem); heavy = {'torch', 'numpy', 'avalanche', "
        "'quadprog', 'matplotlib', 'rich', 'typer'}; print(heavy & set(sys.modules))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert output.strip() == "set()"


@pytest.mark.parametrize("name", avalanche_mgem.__all__)
def test_public_names_resolve(name):
    assert getattr(avalanche_mgem, name) is not None


def test_a_name_that_is_not_there_is_said():
    with pytest.raises(AttributeError, match="has no attribute 'MGEN'"):
        _ = avalanche_mgem.MGEN


def test_no_two_files_of_tests_have_one_name():
    """Else pytest finds one of them only, or none."""
    names = [path.name for path in Path(__file__).parent.rglob("*.py") if path.stem != "conftest"]
    assert sorted(names) == sorted(set(names))
