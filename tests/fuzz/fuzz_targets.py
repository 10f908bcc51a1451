"""Every public name: what it takes, or why it is not tried."""

import fuzz_experiment
import fuzz_huggingface
import fuzz_plugins
import fuzz_pure
import fuzz_streams

# Those that cost next to nothing, and those whose calls make data sets, models or files.
CHEAP = {
    **fuzz_pure.RESTRICTION,
    **fuzz_pure.FUNCTIONS,
    **fuzz_pure.MODELS,
    **fuzz_pure.THEORY,
    **fuzz_pure.EVALUATION,
    **fuzz_plugins.PLUGINS,
    **fuzz_experiment.EXPERIMENT,
}
DEAR = {
    **fuzz_streams.STREAMS,
    **fuzz_streams.TEXT,
    **fuzz_plugins.STRATEGIES,
    **fuzz_plugins.CHECKPOINTS,
    **fuzz_huggingface.HUGGINGFACE,
    **fuzz_experiment.PLOTS,
}
TABLE = {**CHEAP, **DEAR}

_RECORD = "a record of results: what it is given is what was computed"
_PROTOCOL = "a protocol, which nobody constructs"
_BATCH = "a container of tensors, made for each batch"
NOT_TRIED = {
    "CheckpointError": "an error",
    "RunsFailedError": "an error",
    "Memory": "an enumeration",
    "DictBatches": "a mixin; HuggingFaceStrategy is one with it",
    "DualSolver": _PROTOCOL,
    "Schedule": _PROTOCOL,
    "ShowsDecision": _PROTOCOL,
    "ShowsMask": _PROTOCOL,
    "ShowsSkippedSteps": _PROTOCOL,
    "Outcome": _RECORD,
    "Projection": _RECORD,
    "RunResult": _RECORD,
    "Simulation": _RECORD,
    "HubTask": "a row of a table; read_hub_task tells of what is wrong in it",
    "TextSample": "a named tuple; TextTask looks at its samples",
    "Features": _BATCH,
    "TextBatch": _BATCH,
    "compare": "test_compare.py",
}


def write_files():
    """Put the files that the good arguments name into the current folder."""
    for part in (fuzz_streams, fuzz_huggingface, fuzz_experiment):
        part.write_files()
