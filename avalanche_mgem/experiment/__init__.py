"""Methods, runs and comparisons.

`compare` trains methods on a stream and shows how they compare; `METHODS` are those that are known
by name; a `Method` of one's own joins them.
"""

from avalanche_mgem.experiment.compare import RunsFailedError, compare
from avalanche_mgem.experiment.configuration import NamedStream, Training
from avalanche_mgem.experiment.models import MLPFactory
from avalanche_mgem.experiment.registry import METHODS, Memory, Method
from avalanche_mgem.experiment.result import RunResult

__all__ = [
    "METHODS",
    "MLPFactory",
    "Memory",
    "Method",
    "NamedStream",
    "RunResult",
    "RunsFailedError",
    "Training",
    "compare",
]
