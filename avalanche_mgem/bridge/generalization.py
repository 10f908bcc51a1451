"""How far a restriction generalises from the memory to the tasks that it was taken from.

The mGEM paper (arXiv 2410.00868) explains memory strength by it: what does no harm to the memory
may still harm the task. So the angle between the restricted gradient z and a past task is measured
twice, on the task's memory and on samples of the task that the memory does not hold.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from avalanche_mgem.bridge.batches import batch_gradient, restored_running_statistics
from avalanche_mgem.bridge.memory import EpisodicMemory, MemoryGroup
from avalanche_mgem.model.gradients import GradientMatrix
from avalanche_mgem.model.randomness import RandomStream


class GeneralizationProbe:
    """Measures the gap at every so many iterations; its rows follow the memory's in the matrix.

    Args:
        every: iterations; None: never.
        seed: of dropout in its forward passes.
    """

    def __init__(self, every: int | None, seed: int) -> None:
        self._every = every
        self._random = RandomStream(seed)
        self._tasks: list[int] = []  # those whose held-out rows are in the matrix

    def groups(self, memory: EpisodicMemory, iteration: int) -> list[MemoryGroup]:
        """Return what is held out of the past tasks, if this iteration is one to measure in."""
        self._tasks = []
        if self._every is None or iteration % self._every:
            return []
        held_out = dict(enumerate(memory.held_out_groups()))
        found = {task: group for task, group in held_out.items() if group is not None}
        self._tasks = list(found)
        return list(found.values())

    def fill(
        self,
        strategy: Any,
        groups: list[MemoryGroup],
        parameters: list[nn.Parameter],
        matrix: GradientMatrix,
    ) -> None:
        """Put the groups' gradients into the last rows; nothing of the run changes by it."""
        if not groups:
            return
        first = len(matrix.rows) - len(groups)
        device = parameters[0].device
        with restored_running_statistics(strategy.model), self._random.active(device):
            for index, group in enumerate(groups, start=first):
                gradients = batch_gradient(strategy, group.batch, parameters)
                matrix.set_row(index, gradients, parameters)

    def gaps(self, vector: Tensor, rows: Tensor, memory: EpisodicMemory) -> dict[int, float]:
        """Return {past task: cosine of z with its memory minus that with what is held out of it}.

        vector: z [P]. rows: [K + number of held-out groups, P].
        """
        held_out = dict(zip(self._tasks, rows[len(rows) - len(self._tasks) :], strict=True))
        gaps, start = {}, 0
        for task, groups in enumerate(memory.closed_tasks()):
            if task in held_out:
                sizes = torch.tensor([g.size for g in groups], dtype=rows.dtype).to(rows.device)
                mean_row = sizes @ rows[start : start + len(groups)]
                gaps[task] = _cosine(vector, mean_row) - _cosine(vector, held_out[task])
            start += len(groups)
        return gaps


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(nn.functional.cosine_similarity(one.double(), other.double(), dim=0))
