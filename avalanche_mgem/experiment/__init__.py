"""Methods, runs and comparisons.

`compare` trains methods on a stream and shows how they compare; `METHODS` are those that are known
by name, `find_method` combines them ("replay+migu"), and a `Method` of one's own joins them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from avalanche_mgem.lazy import public_names

if TYPE_CHECKING:
    from avalanche_mgem.experiment.comparison import RunsFailedError, compare
    from avalanche_mgem.experiment.configuration import NamedStream, Training
    from avalanche_mgem.experiment.fixed_stream import FixedStream
    from avalanche_mgem.experiment.loading import load_results
    from avalanche_mgem.experiment.models import (
        CNNFactory,
        MLPFactory,
        SlimResNet18Factory,
        load_model_factory,
        make_model_factory,
    )
    from avalanche_mgem.experiment.sweeps import sweep
    from avalanche_mgem.experiment.text.models import TextModelFactory
    from avalanche_mgem.experiment.text.stream import TextStream
    from avalanche_mgem.methods.method import Memory, Method
    from avalanche_mgem.methods.methods_file import load_methods
    from avalanche_mgem.methods.methods_table import methods_table
    from avalanche_mgem.methods.registry import DEFAULT_METHODS, METHODS, TEXT_METHODS, find_method
    from avalanche_mgem.methods.space import Choices, Range, load_spaces
    from avalanche_mgem.report.folder import write_report
    from avalanche_mgem.results.paired import PairedComparison, paired_comparisons
    from avalanche_mgem.results.result import RunResult

__all__ = [
    "DEFAULT_METHODS",
    "METHODS",
    "TEXT_METHODS",
    "CNNFactory",
    "Choices",
    "FixedStream",
    "MLPFactory",
    "Memory",
    "Method",
    "NamedStream",
    "PairedComparison",
    "Range",
    "RunResult",
    "RunsFailedError",
    "SlimResNet18Factory",
    "TextModelFactory",
    "TextStream",
    "Training",
    "compare",
    "find_method",
    "load_methods",
    "load_model_factory",
    "load_results",
    "load_spaces",
    "make_model_factory",
    "methods_table",
    "paired_comparisons",
    "sweep",
    "write_report",
]

__getattr__, __dir__ = public_names(
    __name__,
    {
        "avalanche_mgem.experiment.comparison": ("RunsFailedError", "compare"),
        "avalanche_mgem.experiment.configuration": ("NamedStream", "Training"),
        "avalanche_mgem.experiment.fixed_stream": ("FixedStream",),
        "avalanche_mgem.experiment.loading": ("load_results",),
        "avalanche_mgem.experiment.models": (
            "CNNFactory",
            "MLPFactory",
            "SlimResNet18Factory",
            "load_model_factory",
            "make_model_factory",
        ),
        "avalanche_mgem.experiment.sweeps": ("sweep",),
        "avalanche_mgem.experiment.text.models": ("TextModelFactory",),
        "avalanche_mgem.experiment.text.stream": ("TextStream",),
        "avalanche_mgem.methods.method": ("Memory", "Method"),
        "avalanche_mgem.methods.methods_file": ("load_methods",),
        "avalanche_mgem.methods.methods_table": ("methods_table",),
        "avalanche_mgem.methods.registry": (
            "DEFAULT_METHODS",
            "METHODS",
            "TEXT_METHODS",
            "find_method",
        ),
        "avalanche_mgem.methods.space": ("Choices", "Range", "load_spaces"),
        "avalanche_mgem.report.folder": ("write_report",),
        "avalanche_mgem.results.paired": ("PairedComparison", "paired_comparisons"),
        "avalanche_mgem.results.result": ("RunResult",),
    },
)
