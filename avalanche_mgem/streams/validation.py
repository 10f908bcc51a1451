"""A validation stream: a share of each experience's training data that is not trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
from avalanche.benchmarks import CLScenario

from avalanche_mgem.streams.benchmarks import rebuilt
from avalanche_mgem.streams.drawing import Draw, draw_share

VALIDATION = "validation"


def with_validation(scenario: Any, share: float, *, seed: int) -> CLScenario:
    """Take a share of each training experience's samples out of it, into a validation stream.

    scenario: a complete one, see `complete_scenario`; it stays what it is. share: in (0, 1); so
    many samples of each class, at random from `seed`, that the classes keep their proportions, see
    `draw_share`. Returns a scenario with a train_stream, of what is left, in its order, a
    validation_stream of as many experiences, and the same test_stream.

    Raises ValueError for an experience that has no class twice.
    """
    train, held_out = [], []
    for i, experience in enumerate(scenario.train_stream):
        data = experience.dataset
        labels = np.asarray([int(label) for label in data.targets], dtype=np.int64)
        rows = draw_share(labels, Draw.VALIDATION, share, seed, i)
        if len(rows) == 0:
            raise ValueError(
                f"validation={share!r} needs an experience with two samples of a class, but "
                f"experience {i} has {len(labels)} samples of as many classes"
            )
        left = np.setdiff1d(np.arange(len(labels)), rows)
        held_out.append((experience, data.subset(rows.tolist())))
        train.append((experience, data.subset(left.tolist())))
    test = [(experience, experience.dataset) for experience in scenario.test_stream]
    return rebuilt({"train": train, VALIDATION: held_out, "test": test})
