"""An install without extras: what needs none works, and what needs one says how to get it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import avalanche_mgem

HERE = Path(__file__).parent
# What the extras hf, sweep and html install, and what these alone bring.
EXTRAS = {
    *("transformers", "peft", "accelerate", "datasets", "optuna", "tokenizers", "safetensors"),
    "vl_convert",
}
HELP = "pip install 'avalanche-mgem[hf]'"


def install_without_extras(site):
    """Fill a folder with links to all that is installed here but the extras."""
    for folder in map(Path, sys.path):
        if folder.name not in ("site-packages", "dist-packages") or not folder.is_dir():
            continue
        for each in folder.iterdir():
            link = site / each.name
            is_extra = re.split(r"[-.]", each.name)[0].lower() in EXTRAS
            if not is_extra and not link.exists() and each.suffix != ".pth":
                link.symlink_to(each)


def seen_without_extras(site):
    """Return what the script saw under a Python that knows that folder and no other."""
    install_without_extras(site)
    path = os.pathsep.join([str(site), str(Path(avalanche_mgem.__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-S", str(HERE / "without_extras.py")],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_what_needs_no_extra_works_and_the_rest_says_how_to_get_it(tmp_path):
    seen = seen_without_extras(tmp_path)
    assert len(seen["modules"]) > 100
    failed = {name for name, error in seen["modules"].items() if error is not None}
    needing = {"huggingface": ("callback", "calling", "magnitude_callback", "memory_callback")}
    needing["experiment"] = ("sweep_results", "sweep_studies")
    assert failed == {
        f"avalanche_mgem.{room}.{name}" for room, names in needing.items() for name in names
    }
    assert len(seen["public"]) > 100
    errors = {name: error for name, error in seen["public"].items() if error is not None}
    callbacks = ("HybridMagnitudeCallback", "MGEMCallback", "MIGUCallback")
    assert set(errors) == {f"avalanche_mgem.huggingface.{name}" for name in callbacks}
    errors |= seen["calls"]
    assert {name for name, error in errors.items() if HELP not in (error or "")} == set()
    status, output, n_runs = seen["plain"]
    assert (status, n_runs) == (0, 4), output
    for status, output, n_runs in (seen["adapters"], seen["text"]):
        assert (status, n_runs) == (1, 0), output
        assert HELP in " ".join(output.split())
