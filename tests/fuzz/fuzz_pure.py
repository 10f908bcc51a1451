"""What the functions on tensors, the closed forms and the metrics take."""

import numpy as np
import torch
from fuzz_values import REAL, WHOLE, Fresh, Target, kind
from tiny import class_stream
from torch import nn

import avalanche_mgem.evaluation as evaluation
import avalanche_mgem.restriction as restriction
import avalanche_mgem.theory as theory
from avalanche_mgem.model.blocks import find_blocks
from avalanche_mgem.model.layers import find_gated_layers
from avalanche_mgem.model.partition import make_partition
from avalanche_mgem.restriction.rows import kept_rows, n_masked, row_magnitudes, token_magnitudes
from avalanche_mgem.restriction.similarity import (
    cosine,
    n_trained,
    sign_agreement,
    similarities,
    trained_by_module,
)

COUNT = kind(1, 3, np.int64(3), np.uint8(3), may="1|3|np.int64|np.uint8|2**70|10**400")
SIZE = kind(1, 3, np.int64(3), may="1|3|np.int64|np.uint8")
NATURAL = kind(0, 3, np.int64(3), may="0|1|3|np.int64|np.uint8|2**70|10**400")
SEED = NATURAL
NUMBER = kind(0.5, 1, np.float32(0.5), may=f"{REAL}|-1|-0.5")
POSITIVE = kind(
    0.5, 2, np.float32(0.5), may="1|3|0.5|2.0|1e-320|2**70|Fraction|np.int64|np.uint8|np.float32"
)
NOT_NEGATIVE = kind(0.5, 0, np.float32(0.5), may=REAL)
SHARE = kind(0.5, 0, np.float32(0.5), may="0|0.0|-0.0|0.5|1e-320|Fraction|np.float32")
FLAG = kind(True, False, np.bool_(True), may="True|False|np.True")


def optional(of):
    """The kind that may be None, too."""
    return kind(None, *of.good, may="|".join({*of.may, "None"}), more=of.more)


def one_of(*names):
    """One of the names; near ones are refused."""
    near = {f"near {name}": f"{name}s" for name in names}
    return kind(*names, more={**near, "another case": names[0].title()})


NAMES = "[]|()|['x']|['']|set|np []|tensor [0]"
_MAPPINGS = "{}|{'x': 'y'}|{'x': [None]}|{0: 1}|{None: None}"
ANY_STRING = "'x'|''|blank|a null|a regex|'3'|'nan'|np.str"


def model(*between):
    """A small model."""
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), *between, nn.Linear(6, 3))


MODEL = kind(model(), Fresh(model))

_TENSORS = "tensor [0]|tensor [2]|tensor [2, 2]"
VECTOR = kind(torch.tensor([1.0, -2.0]), may="tensor [0]|tensor [2]")

# Arrays of numbers are broadcast against each other.
_ARRAYS = "np []|tensor []|tensor [0]|tensor [2, 2]|tensor int|[]|()|[0]|[[]]"
TASKS = theory.TwoTasks(n=5, p=20, p2=10, shared_norm=1, specific_norm=1, distance=1, noise=0.1)
TWO_TASKS = kind(TASKS)


def array(*good, may):
    return kind(*good, may=f"{may}|{_ARRAYS}")


RESTRICTION = {
    "ConstantSchedule": Target(restriction.ConstantSchedule, {"value": NOT_NEGATIVE}),
    **{
        schedule.__name__: Target(
            schedule,
            {
                "start": NOT_NEGATIVE,
                "end": NOT_NEGATIVE,
                "steps": kind(2, np.int64(3), may="3|np.int64|np.uint8|2**70|10**400"),
                "over": one_of("experiences", "iterations"),
            },
        )
        for schedule in (restriction.LinearSchedule, restriction.CosineSchedule)
    },
    "PolyakStrength": Target(
        restriction.PolyakStrength,
        {
            "factor": kind(1.0, np.float32(0.5), may=REAL),
            "floor": kind(0.0, -1, np.float32(0.5), may=f"{REAL}|-1|-0.5"),
            "maximum": kind(
                None, 0.5, restriction.ConstantSchedule(1.0), may=f"None|{REAL}|a function"
            ),
        },
    ),
    "DiagonalSolver": Target(restriction.DiagonalSolver, {}),
    "QuadprogSolver": Target(restriction.QuadprogSolver, {}),
    "PivotingSolver": Target(restriction.PivotingSolver, {"quadprog_up_to": NATURAL}),
    "project": Target(
        restriction.project,
        {
            "gradient": VECTOR,
            "rows": kind(torch.tensor([[-1.0, 0.5]]), may="tensor [2, 2]"),
            "memory_strength": kind(
                0.5, torch.tensor([0.5]), np.float32(0.5), may=f"{REAL}|tensor []|tensor [0]"
            ),
            "modules": kind(None, [[slice(0, 1)], [slice(1, 2)]], [[]], may="None|[[]]|['']"),
            "solver": kind(None, restriction.DiagonalSolver(), may="None"),
            "ridge": kind("relative", 0.0, 1e-3, np.float32(0.5), may=REAL),
        },
        also=(FloatingPointError,),
    ),
}

FUNCTIONS = {
    "n_masked": Target(n_masked, {"mask_fraction": SHARE, "n_rows": NATURAL}),
    "kept_rows": Target(
        kept_rows,
        {
            "scores": kind(torch.tensor([1.0, 2.0, 3.0]), may="tensor [0]|tensor bool"),
            "mask_fraction": SHARE,
        },
        also=(FloatingPointError,),
    ),
    "row_magnitudes": Target(
        row_magnitudes,
        {
            "matrix": kind(torch.ones(2, 3), may=f"{_TENSORS}|tensor int|tensor meta"),
            "dim": kind(0, 1, np.int64(0), may="0|1|-1"),
        },
    ),
    "token_magnitudes": Target(
        token_magnitudes,
        {
            "output": kind(torch.ones(2, 3, 4), may=f"{_TENSORS}|tensor int|tensor meta"),
            "normalize": one_of("none", "token"),
            "weights": kind(
                None,
                torch.ones(2, 3),
                torch.ones(2),
                may="None|tensor bool|tensor [2]|tensor []|tensor nan",
            ),
            "channel_dim": kind(-1, 0, np.int64(1), may="0|1|-1"),
        },
    ),
    "cosine": Target(cosine, {"one": VECTOR, "other": VECTOR}, also=(FloatingPointError,)),
    "sign_agreement": Target(
        sign_agreement, {"one": VECTOR, "other": VECTOR}, also=(FloatingPointError,)
    ),
    "similarities": Target(
        similarities,
        {
            # Names that are not asked for are left alone.
            "one": kind({"a": torch.tensor([1.0, -2.0])}, {}, may=_MAPPINGS),
            "other": kind({"a": torch.tensor([1.0, -2.0])}, {}, may=_MAPPINGS),
            "groups": kind({"group": ["a"]}, {}, may="{}"),
            "metric": kind("cosine", "sign", lambda a, b: 0.5),
        },
        also=(FloatingPointError,),
    ),
    "n_trained": Target(
        n_trained,
        {
            "similarity": NUMBER,
            "low": kind(0, 1, np.int64(2), may=WHOLE),
            "high": kind(2, np.int64(3), may=f"{WHOLE}|2**70|10**400"),
            "threshold": NUMBER,
            "schedule": one_of("hard", "graded"),
        },
    ),
    "trained_by_module": Target(
        trained_by_module,
        {
            "names": kind(["a", "b"], ("a",), may=NAMES),
            "module_similarities": kind({"a": 0.5}, {}, may="{}|{0: 1}"),
            "low": kind(0, 1, np.int64(2), may=WHOLE),
            "high": kind(2, np.int64(3), may=f"{WHOLE}|2**70|10**400"),
            "threshold": NUMBER,
        },
    ),
}

_PATTERNS = kind(None, ["0"], ("*",), may="None")
_SEEN = {"seen_heads": "what a HeadWatch has found"}

MODELS = {
    "make_partition": Target(
        make_partition,
        {
            "model": MODEL,
            "parameter_groups": kind(
                1, 3, np.int64(3), "layer", "tensor", {"all": ["*"]}, may="1|3|np.int64|np.uint8"
            ),
            "unassigned_parameters": one_of("error", "free", "module"),
        },
    ),
    "find_blocks": Target(
        find_blocks,
        {
            "model": MODEL,
            "modules": _PATTERNS,
            "heads": kind(None, "2", ["2"], may="None|[]|()|np []|tensor [0]"),
        },
        left=_SEEN,
    ),
    "find_gated_layers": Target(
        find_gated_layers,
        {
            "model": MODEL,
            "target_modules": kind(None, "all-linear", ["0"], may="None"),
            "heads": kind(None, "2", ["2"], may="None|[]|()|np []|tensor [0]"),
            "fused": one_of("layer", "parts"),
        },
        left=_SEEN,
    ),
}

_NORM = array(1.0, 0, [0.5, 1], may=REAL)
_MAGNITUDES = array(1.0, 0, [0.5, 1], may="0|1|0.0|-0.0|0.5|1e-320|Fraction|np.float32")
THEORY = {
    "TwoTasks": Target(
        theory.TwoTasks,
        {
            "n": array(5, [5, 6], may="1|3|np.int64|np.uint8|2.0"),
            "p": array(20, [20, 30], may="1|3|np.int64|np.uint8|2.0|2**70"),
            "p2": array(10, [10, 12], may="3|np.int64|np.uint8|2.0|2**70"),
            "shared_norm": _NORM,
            "specific_norm": _NORM,
            "distance": _NORM,
            "noise": _NORM,
            "cosine": array(0.0, -0.5, [0.5, 1], may=f"{REAL}|-1|-0.5"),
        },
    ),
    "crossing": Target(theory.crossing, {"tasks": TWO_TASKS}),
    "frozen": Target(theory.frozen, {"tasks": TWO_TASKS}),
    "initialized": Target(theory.initialized, {"tasks": TWO_TASKS}),
    "outcome": Target(
        theory.outcome,
        {"tasks": TWO_TASKS, "moving": array(0, 20, [5, 6], may=f"{WHOLE}|0.0|-0.0|2.0")},
    ),
    "frozen_forgetting": Target(
        theory.frozen_forgetting,
        {
            "n": array(5, [5, 6], may="1|3|np.int64|np.uint8|2.0"),
            "p2": array(10, 10.5, [8, 9], may="2**70"),
            "xi": array(0.5, [0.5, 1], may=f"{REAL}|-1|-0.5"),
            "eta": _NORM,
        },
    ),
    "optimal_p2": Target(
        theory.optimal_p2,
        {
            "n": array(5, [5, 6], may="1|3|np.int64|np.uint8|2.0|2**70"),
            "xi": array(0.5, [0.5, 1], may=f"{REAL}|-1|-0.5"),
            "eta": _NORM,
        },
    ),
    "scaled": Target(theory.scaled, {"tasks": TWO_TASKS, "magnitude": _MAGNITUDES}),
    "optimal_magnitude": Target(theory.optimal_magnitude, {"tasks": TWO_TASKS}),
    "sequence_errors": Target(
        theory.sequence_errors, {"tasks": TWO_TASKS, "magnitudes": _MAGNITUDES, "kept": FLAG}
    ),
    "optimal_magnitudes": Target(
        theory.optimal_magnitudes, {"tasks": TWO_TASKS, "n_tasks": SIZE, "kept": FLAG}
    ),
    "simulate_sequence": Target(
        theory.simulate_sequence,
        {
            "tasks": TWO_TASKS,
            "magnitudes": _MAGNITUDES,
            "kept": FLAG,
            "how": one_of("way", "steps"),
            "runs": kind(2, np.int64(3), may="3|np.int64|np.uint8"),
            "seed": kind(0, None, np.int64(3), may="None|0|1|3|2**70|10**400|np.int64|np.uint8"),
        },
    ),
    "simulate": Target(
        theory.simulate,
        {
            "tasks": TWO_TASKS,
            "moving": kind(0, 20, np.int64(5), may=WHOLE),
            "runs": kind(2, np.int64(3), may="3|np.int64|np.uint8"),
            "seed": kind(0, None, np.int64(3), may="None|0|1|3|2**70|10**400|np.int64|np.uint8"),
        },
    ),
}

_MATRIX = kind(
    np.eye(3), np.full((2, 2), np.nan), [[1, 0], [0.5, 1]], may="tensor [2, 2]|tensor int"
)
_FLAGS = {
    "DecisionMetric": ["modules", "figure"],
    "DistanceMetric": ["modules", "from_start"],
    "GatingMetric": ["minibatch", "layers", "histograms", "heat_map"],
    "RestrictionMetric": ["minibatch", "modules", "histograms"],
    "SkippedSteps": [],
    "decision_metrics": ["modules", "figure"],
    "distance_metrics": ["modules", "from_start"],
    "gating_metrics": ["minibatch", "layers", "histograms", "heat_map"],
    "restriction_metrics": ["minibatch", "modules", "histograms"],
    "skipped_steps_metrics": [],
}
_COUNTED = {
    "heat_map": FLAG,
    "curve": FLAG,
    "ignore_index": kind(-100, 255, None, may=f"None|{WHOLE}"),
    "class_dim": kind(1, -1, None, may="None|1|-1"),
}
PATH = kind("a", may="''|'x'|blank|a regex|'3'|'nan'|np.str|Path")
EVALUATION = {
    **{
        name: Target(getattr(evaluation, name), dict.fromkeys(flags, FLAG))
        for name, flags in _FLAGS.items()
    },
    **{
        name: Target(getattr(evaluation, name), _COUNTED)
        for name in ("AccuracyMatrix", "accuracy_matrix_metrics")
    },
    "ScalarCSVLogger": Target(evaluation.ScalarCSVLogger, {"path": PATH}),
    "EvaluateEvery": Target(
        evaluation.EvaluateEvery,
        {
            "iterations": COUNT,
            "stream": kind(class_stream().test_stream, [class_stream().test_stream[0]]),
        },
    ),
    **{
        name: Target(getattr(evaluation, name), {"accuracy": _MATRIX})
        for name in (
            *("average_accuracy", "average_incremental_accuracy", "backward_transfer"),
            *("forgetting", "forgetting_of_tasks", "learning_accuracy"),
        )
    },
    **{
        name: Target(
            getattr(evaluation, name),
            {
                "accuracy": kind(np.eye(3), [[1, 0, 0]] * 3, may="tensor [2, 2]|tensor int"),
                "lowest": kind(None, np.zeros(3), [0.5, 0.5, np.nan], may="None"),
            },
        )
        for name in ("minimum_accuracy", "worst_case_accuracy")
    },
    "forward_transfer": Target(
        evaluation.forward_transfer,
        {
            "accuracy": kind(np.eye(3), [[1, 0, 0]] * 3),
            "baseline": kind(np.zeros(3), [0.5, 0.5, np.nan]),
        },
    ),
}
