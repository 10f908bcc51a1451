"""Every public name: what it takes, or why it is not tried."""

import fuzz_experiment
import fuzz_huggingface
import fuzz_plugins
import fuzz_pure
import fuzz_streams

# By what they have in common; NOT_TRIED has the others.
KINDS = {
    "restriction": fuzz_pure.RESTRICTION,
    "functions": fuzz_pure.FUNCTIONS,
    "models": fuzz_pure.MODELS,
    "theory": fuzz_pure.THEORY,
    "evaluation": fuzz_pure.EVALUATION,
    "plugins": fuzz_plugins.PLUGINS,
    "strategies": fuzz_plugins.STRATEGIES,
    "checkpoints": fuzz_plugins.CHECKPOINTS,
    "streams": fuzz_streams.STREAMS,
    "text": fuzz_streams.TEXT,
    "huggingface": fuzz_huggingface.HUGGINGFACE,
    "experiment": fuzz_experiment.EXPERIMENT,
    "plots": fuzz_experiment.PLOTS,
    "report": fuzz_experiment.REPORT,
}
TABLE = {name: target for table in KINDS.values() for name, target in table.items()}

_RECORD = "a record of results: what it is given is what was computed"
_PROTOCOL = "a protocol, which nobody constructs"
_OWN = "for other modules of the package, after they have looked at the arguments"
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
    "PairedComparison": _RECORD,
    "AccuracyCurve": _RECORD,
    "SequenceSimulation": _RECORD,
    "Simulation": _RECORD,
    "HubTask": "a row of a table; read_hub_task tells of what is wrong in it",
    "TextSample": "a named tuple; TextTask looks at its samples",
    "Features": _BATCH,
    "TextBatch": _BATCH,
    "compare": "it trains for minutes; tests/experiment/test_checks.py has what it refuses",
    "sweep": "it trains for minutes; tests/experiment/test_sweeps.py has what it refuses",
    "main": "the command; tests/cli has what it refuses",
    "model_and_tokenizer": _OWN,
    "is_lazy": _OWN,
    "uninitialized": _OWN,
}


def write_files():
    """Put the files that the good arguments name into the current folder."""
    for part in (fuzz_streams, fuzz_plugins, fuzz_huggingface, fuzz_experiment):
        part.write_files()
