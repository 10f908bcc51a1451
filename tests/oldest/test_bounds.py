"""The oldest versions: pyproject's bounds and what is tested are the same."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).parent
PROJECT = tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
NAMED = [Requirement(text) for text in sum(EXTRAS.values(), PROJECT["dependencies"])]
# A line of the constraints file, without and with the comment that what is not ours must have.
LINE = re.compile(r"(?P<name>[\w.-]+)==(?P<version>[\w.]+)(?P<reason> # .+)?")


def lower_bound(requirement):
    (bound,) = [each.version for each in requirement.specifier if each.operator == ">="]
    return Version(bound)


def constraints():
    lines = (HERE / "constraints.txt").read_text("utf-8").splitlines()
    found = [LINE.fullmatch(line) for line in lines if not line.startswith("#")]
    assert all(found), lines
    names = [canonicalize_name(each["name"]) for each in found]
    assert len(set(names)) == len(names)
    return dict(zip(names, found, strict=True))


def test_the_oldest_versions_tested_are_the_lower_bounds():
    bounds = {}
    for requirement in NAMED:
        bound = bounds.setdefault(canonicalize_name(requirement.name), lower_bound(requirement))
        assert lower_bound(requirement) == bound, f"{requirement.name} has two bounds"
    lines = constraints()
    ours = {name: Version(line["version"]) for name, line in lines.items() if name in bounds}
    assert ours == bounds
    assert all(line["reason"] for name, line in lines.items() if name not in bounds)


def test_every_bound_has_its_reason():
    text = (HERE.parents[1] / "pyproject.toml").read_text("utf-8")
    reasons = dict(re.findall(r'^ +"([\w-]+)[<>=].*",? +# (.+)$', text, re.MULTILINE))
    assert {requirement.name for requirement in NAMED} <= set(reasons)


def test_the_oldest_python_is_the_one_asked_for():
    (bound,) = Requirement(f"python{PROJECT['requires-python']}").specifier
    assert set(re.findall(r"python(3\.\d+)", (HERE / "run.sh").read_text("utf-8"))) == {
        bound.version
    }


@pytest.mark.parametrize("fails", ["pip", "pytest", "nothing"])
def test_the_script_leaves_no_environment(tmp_path, fails):
    python, home = tmp_path / "python", tmp_path / "temporary"
    home.mkdir()
    # A Python whose environments have itself inside, and whose modules fail as they are told.
    python.write_text(
        '#!/bin/bash\necho "$@" >> "$LOG"\n'
        'if [ "$2" = venv ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; fi\n'
        '[ "$2" != "$FAILS" ]\n'
    )
    python.chmod(0o755)
    log = tmp_path / "log"
    settings = {"PYTHON": str(python), "TMPDIR": str(home), "LOG": str(log), "FAILS": fails}
    command = ["bash", str(HERE / "run.sh"), "-m", "slow"]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, check=False)
    assert (done.returncode == 0) == (fails == "nothing")
    assert list(home.iterdir()) == []
    assert ("-m pytest -m slow" in log.read_text("utf-8").splitlines()) == (fails != "pip")
