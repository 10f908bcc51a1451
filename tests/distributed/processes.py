"""Start a pair of processes, and end it whatever happens."""

import json
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
    logs = [folder / f"{rank}.txt" for rank in range(2)]
    started = []
    try:
        for rank, log in enumerate(logs):
            with log.open("w") as file:
                command = [sys.executable, str(WORKER), str(folder), str(rank), module]
                started.append(subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT))
        _wait(started, time.monotonic() + TIMEOUT)
    finally:
        for process in started:
            process.kill()
            process.wait()
    said = "\n".join(log.read_text()[-4000:] for log in logs)
    codes = [process.returncode for process in started]
    assert (folder / "results.json").exists(), f"the processes ended with {codes}:\n{said}"
    return json.loads((folder / "results.json").read_text())


def _wait(processes, deadline):
    """Until both have ended, one has failed, or it is too late."""
    while time.monotonic() < deadline:
        codes = [process.poll() for process in processes]
        if None not in codes or any(codes):
            # What the other says when it is left alone may be the reason.
            return
        time.sleep(0.05)


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
