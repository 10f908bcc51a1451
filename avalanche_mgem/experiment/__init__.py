"""Methods, runs and comparisons.

`compare` trains methods on a stream and shows how they compare; `METHODS` are those that are known
by name; a `Method` of one's own joins them.
"""

from avalanche_mgem.experiment.compare import RunsFailedError, compare
from avalanche_mgem.experiment.configuration import NamedStream, Training
from avalanche_mgem.experiment.folders import load_results
from avalanche_mgem.experiment.methods_file import load_methods
from avalanche_mgem.experiment.models import (
    CNNFactory,
    MLPFactory,
    SlimResNet18Factory,
    load_model_factory,
    make_model_factory,
)
from avalanche_mgem.experiment.registry import (
    DEFAULT_METHODS,
    METHODS,
    Memory,
    Method,
    methods_table,
)
from avalanche_mgem.experiment.report_folder import write_report
from avalanche_mgem.experiment.result import RunResult

__all__ = [
    "DEFAULT_METHODS",
    "METHODS",
    "CNNFactory",
    "MLPFactory",
    "Memory",
    "Method",
    "NamedStream",
    "RunResult",
    "RunsFailedError",
    "SlimResNet18Factory",
    "Training",
    "compare",
    "load_methods",
    "load_model_factory",
    "load_results",
    "make_model_factory",
    "methods_table",
    "write_report",
]
