"""Start a pair of processes, and end it whatever happens."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from process_worker import TIMEOUT

WORKER = Path(__file__).with_name("process_worker.py")


def run_pair(folder, module):
    """Return what `both` of the module returns in two processes; see process_worker.py.

    Raises:
        AssertionError: one of them fails, with the end of what both said, or they hang.
    """
    log = folder / "log.txt"
    with log.open("w") as file:
        started = subprocess.Popen(
            [sys.executable, str(WORKER), str(folder), module],
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.wait(TIMEOUT)
    finally:
        with contextlib.suppress(ProcessLookupError):  # both have ended
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()
    said = log.read_text()[-8000:]
    assert (folder / "results.json").exists(), f"ended with {started.returncode}:\n{said}"
    return json.loads((folder / "results.json").read_text())


def results_of(module, tmp_path_factory, worker_id):
    """Run a pair once, whatever number of pytest's workers want its results."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / module
    try:
        folder.mkdir()
    except FileExistsError:
        return _results_of_another(folder)
    try:
        return run_pair(folder, module)
    finally:
        (folder / "over").touch()


def _results_of_another(folder):
    while not (folder / "over").exists():
        time.sleep(0.1)
    assert (folder / "results.json").exists(), f"the pair failed, see {folder}"
    return json.loads((folder / "results.json").read_text())
