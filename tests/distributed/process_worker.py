"""Two processes that train together: python process_worker.py FOLDER MODULE.

Calls `both(alone)` of the module, after its `alone(rank)` without a process group, and writes what
the first process returns to FOLDER/results.json. The second is a copy of the first: what both
import takes seconds.
"""

import datetime
import faulthandler
import importlib
import json
import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
TIMEOUT = 600  # seconds, on a busy machine


def main(folder, module):
    """Run the module's cases."""
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    import torch

    torch.set_num_threads(1)
    cases = importlib.import_module(module)
    second = os.fork()
    faulthandler.dump_traceback_later(TIMEOUT - 10)  # where it hangs
    results = run(cases, folder, 0 if second else 1)
    if second:
        assert os.waitpid(second, 0)[1] == 0, "the second process failed"
        unfinished = Path(folder, "results.part")
        unfinished.write_text(json.dumps(results))
        unfinished.rename(Path(folder, "results.json"))


def run(cases, folder, rank):
    """Return what one of the two processes found."""
    from torch import distributed

    alone = cases.alone(rank)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=TIMEOUT),
    )
    results = cases.both(alone)
    distributed.barrier()
    distributed.destroy_process_group()
    return results


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
