"""How much of a model should move on a new task? Closed forms for two linear tasks.

The setting is that of arXiv 2602.20796 (update magnitude): y_k = X_k'u + Z_k'q_k + noise for the
tasks k = 1, 2, with p shared features, p2 features of the task's own and n samples each, all
entries standard normal. Task 1 is the minimum-norm fit from zero. Task 2 starts from its result
and is the smallest change that fits: of q alone ("frozen"), of all parameters ("initialized"), or,
between the two, of q and some of the shared parameters. The closed forms are derived for this
project; where, is said in `closed_forms`. `simulate` trains the model to see whether they hold.

Between the two there is also how far the shared parameters go: `scaled`, and for a sequence of
tasks `sequence_errors`, with the best magnitudes and a simulation of its own; see `magnitude`.
"""

from avalanche_mgem.theory.closed_forms import (
    Outcome,
    crossing,
    frozen,
    frozen_forgetting,
    initialized,
    optimal_p2,
    outcome,
)
from avalanche_mgem.theory.magnitude import (
    optimal_magnitude,
    optimal_magnitudes,
    scaled,
    sequence_errors,
)
from avalanche_mgem.theory.sequence_simulation import SequenceSimulation, simulate_sequence
from avalanche_mgem.theory.simulation import Simulation, simulate
from avalanche_mgem.theory.tasks import TwoTasks

__all__ = [
    "Outcome",
    "SequenceSimulation",
    "Simulation",
    "TwoTasks",
    "crossing",
    "frozen",
    "frozen_forgetting",
    "initialized",
    "optimal_magnitude",
    "optimal_magnitudes",
    "optimal_p2",
    "outcome",
    "scaled",
    "sequence_errors",
    "simulate",
    "simulate_sequence",
]
