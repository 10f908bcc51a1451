"""How far a restriction generalises from the memory to the tasks that it was taken from.

The mGEM paper (arXiv 2410.00868) explains memory strength by it: what does no harm to the memory
may still harm the task. So the angle between the restricted gradient z and a past task is measured
twice, on the task's memory and on samples of the task that the memory does not hold.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from avalanche_mgem.bridge.batches import (
    evaluated_normalization,
    restored_running_statistics,
    write_batch_gradient,
)
from avalanche_mgem.bridge.memory import EpisodicMemory, MemoryGroup
from avalanche_mgem.bridge.strategy import Strategy
from avalanche_mgem.model.randomness import RandomStream


class GeneralizationProbe:
    """Measures the gap at every so many iterations; its rows follow the memory's in the matrix.

    Args:
        every: iterations; None: never.
        seed: of dropout in its forward passes.
    """

    measures = False  # at this iteration

    def __init__(self, every: int | None, seed: int) -> None:
        self._every = every
        self._random = RandomStream(seed)
        self._tasks: list[int] = []  # those whose held-out rows are in the matrix

    @property
    def rows_a_task(self) -> int:
        """How many rows a past task takes to measure with."""
        return 0 if self._every is None else 1

    def groups(self, memory: EpisodicMemory, iteration: int) -> list[MemoryGroup]:
        """Return what is held out of the past tasks; none where nothing is ever measured.

        Their rows are there at every iteration, so that measuring now and then moves no others.
        """
        self.measures = self._every is not None and iteration % self._every == 0
        held_out = {} if self._every is None else dict(enumerate(memory.held_out_groups()))
        found = {task: group for task, group in held_out.items() if group is not None}
        self._tasks = list(found)
        return list(found.values())

    def fill(
        self,
        strategy: Strategy,
        groups: list[MemoryGroup],
        parameters: list[nn.Parameter],
        rows: Tensor,
        *,
        evaluated: bool = False,
        half: bool = False,
    ) -> bool:
        """Write the groups' gradients into rows [n, P], if this iteration is one to measure in.

        Nothing of the run changes by it. Return whether they were written.

        evaluated, half: whether the memory's passes use running statistics, and are in bfloat16.
        """
        if not self.measures:
            return False
        device = parameters[0].device
        norms = evaluated_normalization if evaluated else restored_running_statistics
        with norms(strategy.model), self._random.active(device):
            for group, row in zip(groups, rows, strict=True):
                write_batch_gradient(strategy, group.batch, parameters, row, half=half)
        return True

    def gaps(
        self, vector: Tensor, rows: Tensor, memory: EpisodicMemory, still: Sequence[slice]
    ) -> dict[int, float]:
        """Return {past task: cosine of z with its memory minus that with what is held out of it}.

        vector: z [P]. rows: [K + number of held-out groups, P], multiplied in the vector's dtype.
        still: positions that do not move and do not count.
        """
        if not self.measures:
            return {}
        held_out = dict(zip(self._tasks, rows[len(rows) - len(self._tasks) :], strict=True))
        gaps, start = {}, 0
        for task, groups in enumerate(memory.closed_tasks()):
            if task in held_out:
                sizes = torch.tensor([g.size for g in groups], dtype=vector.dtype).to(rows.device)
                own = rows[start : start + len(groups)].to(vector.dtype)
                both = torch.stack((sizes @ own, held_out[task].to(vector.dtype)))
                for columns in still:
                    both[:, columns] = 0.0
                gaps[task] = _cosine(vector, both[0]) - _cosine(vector, both[1])
            start += len(groups)
        return gaps


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(nn.functional.cosine_similarity(one.double(), other.double(), dim=0))
