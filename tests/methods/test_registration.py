"""Methods that other packages add, by a call or by an entry point."""

import os
import pickle
import subprocess
import sys
import warnings

import pytest
from avalanche.training.supervised import Naive
from run_cases import MODEL, TRAINING, permuted

from avalanche_mgem.experiment import METHODS, Method, compare, find_method
from avalanche_mgem.experiment.configuration import RunSpecification
from avalanche_mgem.lazy import Lazy
from avalanche_mgem.methods import known
from avalanche_mgem.methods.registration import MethodRegistry
from avalanche_mgem.plugins import MIGUPlugin

MINE = Method("mine", Naive, description="as naive does")


@pytest.fixture
def registry():
    return MethodRegistry([Method("naive", Naive), Method("gem", known.GEM)])


@pytest.fixture
def known_methods(monkeypatch):
    """The registry of all, which forgets after the test what a test adds."""
    monkeypatch.setattr(METHODS, "_methods", dict(METHODS._methods))
    return METHODS


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Install a package with a module `own_methods` and entry points that name parts of it."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(name, code, **points):
        module = f"own_methods_{name.replace('-', '_')}"
        (tmp_path / f"{module}.py").write_text(code)
        info = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"{point} = {module}:{value}" for point, value in points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[avalanche_mgem.methods]", *lines, ""]))
        sys.modules.pop(module, None)
        return module

    return install


CODE = """
from avalanche_mgem.experiment import Method
from avalanche_mgem.lazy import Lazy
NAIVE = Lazy("avalanche.training.supervised.strategy_wrappers:Naive", ())
ONE = Method("one", NAIVE, description="from a package")
def several():
    return [Method("two", NAIVE), Method("three", NAIVE)]
def fails():
    return 1 / 0
"""


def test_it_reads_as_a_dict(registry):
    assert list(registry) == ["naive", "gem"]
    assert "gem" in registry
    assert "gen" not in registry
    assert len(registry) == 2
    assert [name for name, _ in registry.items()] == [each.name for each in registry.values()]
    assert {**registry} == registry == dict(registry.items())
    assert registry.get("gen") is None
    with pytest.raises(KeyError, match="gen"):
        registry["gen"]


def test_a_method_is_found_once_it_is_registered(known_methods):
    assert known_methods.register(MINE) is MINE
    assert find_method("mine") is METHODS["mine"] is MINE
    assert list(METHODS)[-1] == "mine"
    assert known_methods.register(MINE) is MINE  # again, as when a module is loaded twice


def test_a_strategy_with_a_plugin_can_be_combined(known_methods):
    class Own(MIGUPlugin):
        """A variant."""

    class OwnStrategy(Naive):
        PLUGIN = Own

    known_methods.register(Method("own", OwnStrategy, {"mask_fraction": 0.5}))
    combined = find_method("own+mgem-d")
    assert [part.name for part in combined.strategy.parts] == ["mgem-d", "own"]  # MIGU comes last
    known_methods.register(MINE)
    with pytest.raises(ValueError, match="'mine' is no plugin"):
        find_method("mine+migu")


def test_a_taken_name_is_refused_unless_it_is_to_be_replaced(registry):
    other = Method("gem", Naive)
    with pytest.raises(ValueError, match=r"method: the name 'gem' is taken; .* replace=True"):
        registry.register(other)
    assert registry["gem"].strategy is known.GEM
    assert registry.register(other, replace=True) is registry["gem"] is other
    assert list(registry) == ["naive", "gem"]


@pytest.mark.parametrize("name", ["a+b", "a,b", "a.b", "a=b", " a", "a\n"])
def test_a_name_that_the_command_takes_apart_is_refused(registry, name):
    with pytest.raises(ValueError, match="cannot be asked for"):
        registry.register(Method(name, Naive))


@pytest.mark.parametrize("method", ["gem", Naive, None])
def test_what_is_no_method_is_refused(registry, method):
    with pytest.raises(ValueError, match="method must be a Method, got"):
        registry.register(method)


def test_a_packages_methods_are_found_when_they_are_asked_for(registry, package):
    module = package("good-methods", CODE, some="ONE", others="several")
    assert registry["gem"]
    assert module not in sys.modules  # a known name loads nothing
    assert registry["three"].name == "three"
    assert module in sys.modules
    assert list(registry) == ["naive", "gem", "one", "two", "three"]


@pytest.mark.parametrize("look", [len, list, dict, lambda registry: list(registry.values())])
def test_listing_asks_for_them_too(registry, package, look):
    module = package("good-methods", CODE, some="ONE")
    look(registry)
    assert module in sys.modules
    assert len(registry) == 3


@pytest.mark.parametrize(
    ("code", "value", "message"),
    [
        (CODE, "fails", "ZeroDivisionError"),
        (CODE, "nothing", "has no attribute 'nothing'"),
        (CODE, "NAIVE", "TypeError"),
        ("import no_such_module", "x", "No module named 'no_such_module'"),
        ("raise SystemError('broken')", "x", "SystemError: broken"),
        ("x = 3", "x", "entry point must be a Method, or a function"),
        ("def x(): return ['gem']", "x", "entry point must be a Method, or a function"),
        (CODE.replace("'one'", "'gem'").replace('"one"', '"gem"'), "ONE", "'gem' is taken"),
    ],
)
def test_a_broken_entry_point_is_a_warning_that_names_the_package(
    registry, package, code, value, message
):
    package("good-methods", CODE, others="several")
    package("broken-methods", code, broken=value)
    with pytest.warns(UserWarning, match=f"the package broken-methods .*'broken'.*{message}"):
        assert list(registry)[:2] == ["naive", "gem"]
    assert {"two", "three"} < set(registry)
    assert registry["gem"].strategy is known.GEM
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "nobody" not in registry  # said once


def test_the_command_lists_and_knows_them(tmp_path, package):
    package("good-methods", CODE, some="ONE")
    package("broken-methods", "import no_such_module", broken="x")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}

    def command(*options):
        call = [sys.executable, "-m", "avalanche_mgem.cli", "compare", *options]
        return subprocess.run(call, capture_output=True, text=True, check=False, env=environment)

    listed = command("--list")
    assert listed.returncode == 0
    assert "from a package" in listed.stdout
    assert "the package broken-methods" in listed.stderr
    refused = command("--methods", "one", "--set", "one.alpha=1")
    assert "Error: one.alpha: no such setting; it has none" in refused.stderr
    assert "did you mean 'one'" in command("--methods", "onee").stderr


@pytest.mark.usefixtures("without_figures")
def test_a_registered_method_is_compared(known_methods, tmp_path):
    known_methods.register(MINE)
    results = compare(
        ["mine", "naive"],
        stream=permuted,
        seeds=1,
        model=MODEL,
        training=TRAINING,
        out=tmp_path / "out",
    )
    assert [result.method for result in results] == ["mine", "naive"]
    assert (results[0].accuracy == results[1].accuracy).all()


def test_another_process_gets_a_registered_method_with_its_run(known_methods, tmp_path):
    """A worker process has not registered it: what is sent is enough to know and to make it."""
    known_methods.register(Method("mine", Lazy("own_strategies:Own", ("alpha",)), {"alpha": 2}))
    (tmp_path / "own_strategies.py").write_text("class Own:\n    def __init__(self, alpha): ...\n")
    run = RunSpecification(find_method("mine"), permuted, 0, MODEL, TRAINING)
    (tmp_path / "run").write_bytes(pickle.dumps(run.method))
    code = (
        "import pathlib, pickle, sys\n"
        "method = pickle.loads(pathlib.Path('run').read_bytes())\n"
        "print(method.name, dict(method.settings), type(method.strategy(alpha=2)).__name__)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    output = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=environment,
    ).stdout
    assert output == "mine {'alpha': 2} Own\n"
