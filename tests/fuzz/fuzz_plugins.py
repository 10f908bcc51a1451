"""What the plugins and the strategies take."""

from functools import partial
from inspect import signature

import numpy as np
import torch
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive, Replay
from avalanche.training.templates import SupervisedTemplate
from fuzz_pure import (
    COUNT,
    FLAG,
    NATURAL,
    NOT_NEGATIVE,
    NUMBER,
    PATH,
    POSITIVE,
    SEED,
    SHARE,
    one_of,
    optional,
)
from fuzz_values import HOSTILE, Fresh, Target, kind
from tiny import make_model, sgd

import avalanche_mgem as package
import avalanche_mgem.checkpoint as package_checkpoint
from avalanche_mgem.restriction import (
    ConstantSchedule,
    DiagonalSolver,
    LinearSchedule,
    PolyakStrength,
)

_DEVICE = kind(
    None,
    "cpu",
    torch.device("cpu"),
    may="None|0|1|3|False|np.int64|np.uint8|'3'",
    more={"near": "cpuu"},
)
_SEED = optional(SEED)
ANY_HEADS = kind(
    None,
    "2",
    ["2"],
    may="None|''|'x'|blank|a null|a regex|'3'|'nan'|np.str|[]|()|['x']|['']|set|np []|tensor [0]",
)
_FINITE = one_of("raise", "skip")
_CALLABLE = "a function"

MGEM = {
    "patterns_per_experience": COUNT,
    "memory_strength": kind(
        0.5,
        0,
        np.float32(0.5),
        ConstantSchedule(0.1),
        LinearSchedule(0.0, 1.0, 2),
        "auto",
        PolyakStrength(maximum=1.0),
        may=f"{NOT_NEGATIVE.names()}|{_CALLABLE}",
    ),
    "parameter_groups": kind(
        1,
        3,
        np.int64(3),
        "layer",
        "tensor",
        {"all": ["*"]},
        lambda model: {"all": [n for n, _ in model.named_parameters()]},
        may=f"{COUNT.names()}|{_CALLABLE}",
    ),
    "memory_groups": kind(1, np.int64(1), may=COUNT.names()),
    "solver": kind("exact", "approximate", DiagonalSolver(), may=_CALLABLE, more={"near": "exakt"}),
    "restrict": one_of("gradient", "update"),
    "memory_split": one_of("random", "class"),
    "memory_selection": one_of("random", "class-balanced", "ring"),
    "memory_strength_per": one_of("task", "row"),
    "ridge": kind(
        "auto", "relative", 1e-3, np.float32(0.5), may=POSITIVE.names(), more={"near": "relativ"}
    ),
    "unassigned_parameters": one_of("error", "free", "module"),
    "unused_parameters": one_of("exclude", "include"),
    "memory_passes": one_of("auto", "loop", "grouped"),
    "memory_transform": one_of("eval", "train"),
    "memory_batch_size": optional(COUNT),
    "refresh_every": COUNT,
    "max_row_bytes": kind(None, 10**9, np.int64(10**6), may=f"None|{COUNT.names()}"),
    "memory_batchnorm": one_of("update", "restore", "evaluate"),
    "memory_device": _DEVICE,
    "memory_precision": one_of("float32", "bf16"),
    "memory_format": one_of("preserve", "channels_last"),
    "generalization_every": optional(COUNT),
    "seed": _SEED,
    "on_nonfinite": _FINITE,
}
MIGU = {
    "mask_fraction": SHARE,
    "target_modules": kind(
        None,
        "all-linear",
        "0",
        ["0"],
        may="None|''|'x'|blank|a null|'3'|'nan'|np.str|['x']|['']|set",
    ),
    "heads": ANY_HEADS,
    "score": one_of("output", "random", "gradient"),
    "freeze": one_of("gradient", "update"),
    "ungated": one_of("train", "freeze"),
    "normalize": one_of("none", "token"),
    "ignore_padding": FLAG,
    "fused": one_of("layer", "parts"),
    "skip_tasks": NATURAL,
    "skip_steps": NATURAL,
    "seed": _SEED,
    "on_nonfinite": _FINITE,
}
HYBRID = {
    "mode": one_of("adaptive", "frozen", "initialized", "decay"),
    "magnitude_decay": optional(NOT_NEGATIVE),
    "low_magnitude": kind(0, 0.5, np.float32(1), may=f"{SHARE.names()}|1"),
    "magnitude": kind(None, lambda task, similarity: 0.5, may=f"None|{_CALLABLE}"),
    "threshold": NUMBER,
    "low": kind(1, 0, np.int64(1), may=NATURAL.names()),
    "high": kind(None, 1, np.int64(2), may=f"None|{COUNT.names()}"),
    "schedule": one_of("hard", "graded"),
    "granularity": one_of("model", "module"),
    "modules": kind(None, ["0"], {"all": ["0"]}, may=f"None|['x']|set|{_CALLABLE}"),
    "heads": ANY_HEADS,
    "metric": kind("cosine", "sign", lambda a, b: 0.5, may=_CALLABLE, more={"near": "cosin"}),
    "reference": one_of("end", "start"),
    "probe_head": one_of("own", "ridge", "auto"),
    "probe_batches": COUNT,
    "head_epochs": NATURAL,
    "decide_every": optional(COUNT),
    "seed": _SEED,
    "on_nonfinite": _FINITE,
}
CLIP = {
    "max_norm": POSITIVE,
    "norm_type": kind(2, float("inf"), np.float32(0.5), may=f"{POSITIVE.names()}|inf"),
    "error_if_nonfinite": FLAG,
}
PLUGINS = {
    "MGEMPlugin": Target(package.MGEMPlugin, MGEM),
    "MIGUPlugin": Target(package.MIGUPlugin, MIGU),
    "HybridMagnitudePlugin": Target(package.HybridMagnitudePlugin, HYBRID),
    "ClipGradientPlugin": Target(package.ClipGradientPlugin, CLIP),
}

_MODEL = make_model()
AVALANCHE = dict.fromkeys(
    signature(SupervisedTemplate).parameters, "Avalanche's own, which checks it or not"
)


def made(strategy):
    """The strategy with what Avalanche wants."""
    return partial(
        strategy, model=_MODEL, optimizer=sgd(_MODEL), evaluator=EvaluationPlugin(), plugins=[]
    )


_STRATEGY = kind(Naive, Replay)
STRATEGIES = {
    "MGEM": Target(made(package.MGEM), MGEM, AVALANCHE),
    "MIGU": Target(made(package.MIGU), MIGU, AVALANCHE),
    "HybridMagnitude": Target(made(package.HybridMagnitude), HYBRID, AVALANCHE),
    "GradientAccumulation": Target(
        made(package.with_gradient_accumulation(Naive)),
        {"micro_batch_size": COUNT, "recompute": FLAG},
    ),
    "MixedPrecision": Target(
        made(package.with_mixed_precision(Naive)),
        {
            "precision": one_of("bf16", "fp16"),
            "memory_precision": kind(None, "bf16", "fp32", may="None"),
            "init_scale": POSITIVE,
            "growth_interval": COUNT,
        },
    ),
    "with_gradient_accumulation": Target(
        package.with_gradient_accumulation, {"strategy": _STRATEGY}
    ),
    "with_mixed_precision": Target(package.with_mixed_precision, {"strategy": _STRATEGY}),
}


def write_files():
    """Put what the names below stand for into the current folder."""
    package_checkpoint.save_checkpoint(made(Naive)(), "saved.ckpt")


# It is looked through for samples, whatever it is.
_BENCHMARK = kind(None, may="|".join(HOSTILE))
CHECKPOINTS = {
    "save_checkpoint": Target(
        package_checkpoint.save_checkpoint,
        {"strategy": kind(Fresh(made(Naive))), "path": PATH, "benchmark": _BENCHMARK},
        also=(OSError,),
    ),
    "load_checkpoint": Target(
        package_checkpoint.load_checkpoint,
        {
            "strategy": kind(Fresh(made(Naive))),
            "path": kind("saved.ckpt", "none.ckpt", may=PATH.names()),
            "benchmark": _BENCHMARK,
            "missing_ok": FLAG,
        },
        also=(package_checkpoint.CheckpointError, FileNotFoundError),
    ),
}
