"""The accuracy on each task over the iterations, as it was evaluated within the experiences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from avalanche_mgem.evaluation.matrix import Matrix


@dataclass(frozen=True)
class AccuracyCurve:
    """What E evaluations of T tasks measured.

    Args:
        iterations: trained before each evaluation, over all experiences, [E].
        trained: tasks trained so far, the one that is being trained included, [E].
        accuracy: float [E, T], tasks in the order in which they were trained; NaN where not
            measured.
    """

    iterations: Sequence[int]
    trained: Sequence[int]
    accuracy: Matrix

    @property
    def lowest(self) -> Matrix:
        """The lowest accuracy on each task while later ones were trained, float [T], or NaN.

        Tasks that were trained at once, as in joint training, have none.
        """
        counts = np.arange(1, self.accuracy.shape[1] + 1)
        later = np.asarray(self.trained)[:, None] > counts
        later &= np.isin(counts, self.trained)
        shown = np.where(later & ~np.isnan(self.accuracy), self.accuracy, np.inf)
        least = shown.min(axis=0, initial=np.inf)
        return np.where(np.isinf(least), np.nan, least)

    def up_to(self, trained: int, tasks: int) -> AccuracyCurve:
        """Return the evaluations with at most so many tasks trained, [E, tasks], padded by NaN."""
        kept = [index for index, count in enumerate(self.trained) if count <= trained]
        accuracy = np.full((len(kept), tasks), np.nan)
        accuracy[:, : self.accuracy.shape[1]] = self.accuracy[kept]
        iterations = [self.iterations[index] for index in kept]
        return AccuracyCurve(iterations, [self.trained[index] for index in kept], accuracy)

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON values; NaN becomes null."""
        objects = self.accuracy.astype(object)
        objects[np.isnan(self.accuracy)] = None
        return {
            "iterations": list(self.iterations),
            "trained": list(self.trained),
            "tasks": self.accuracy.shape[1],
            "accuracy": objects.tolist(),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> AccuracyCurve:
        """Read what `as_json` made."""
        accuracy = np.array(values["accuracy"], dtype=np.float64).reshape(-1, int(values["tasks"]))
        iterations, trained = list(values["iterations"]), list(values["trained"])
        return cls(iterations, trained, accuracy)
