"""One of two processes that train together: python process_worker.py FOLDER RANK MODULE.

Calls `both(alone)` of the module, after its `alone(rank)` without a process group, and writes what
the first process returns to FOLDER/results.json.
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


def main(folder, rank, module):
    """Run the module's cases."""
    faulthandler.dump_traceback_later(TIMEOUT - 10)  # where it hangs
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    cases = importlib.import_module(module)
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
    if rank == 0:
        unfinished = Path(folder, "results.part")
        unfinished.write_text(json.dumps(results))
        unfinished.rename(Path(folder, "results.json"))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
