"""The accuracy matrix, and metrics for Avalanche's EvaluationPlugin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from avalanche_mgem.lazy import public_names

if TYPE_CHECKING:
    from avalanche_mgem.evaluation.accuracy import AccuracyMatrix, accuracy_matrix_metrics
    from avalanche_mgem.evaluation.csv_logger import ScalarCSVLogger
    from avalanche_mgem.evaluation.curve import AccuracyCurve
    from avalanche_mgem.evaluation.decisions import DecisionMetric, ShowsDecision, decision_metrics
    from avalanche_mgem.evaluation.distance import DistanceMetric, distance_metrics
    from avalanche_mgem.evaluation.every import EvaluateEvery
    from avalanche_mgem.evaluation.gating import GatingMetric, ShowsMask, gating_metrics
    from avalanche_mgem.evaluation.matrix import (
        average_accuracy,
        average_incremental_accuracy,
        backward_transfer,
        forgetting,
        forgetting_of_tasks,
        forward_transfer,
        learning_accuracy,
        minimum_accuracy,
        worst_case_accuracy,
    )
    from avalanche_mgem.evaluation.nonfinite import (
        ShowsSkippedSteps,
        SkippedSteps,
        skipped_steps_metrics,
    )
    from avalanche_mgem.evaluation.restriction import RestrictionMetric, restriction_metrics

__all__ = [
    "AccuracyCurve",
    "AccuracyMatrix",
    "DecisionMetric",
    "DistanceMetric",
    "EvaluateEvery",
    "GatingMetric",
    "RestrictionMetric",
    "ScalarCSVLogger",
    "ShowsDecision",
    "ShowsMask",
    "ShowsSkippedSteps",
    "SkippedSteps",
    "accuracy_matrix_metrics",
    "average_accuracy",
    "average_incremental_accuracy",
    "backward_transfer",
    "decision_metrics",
    "distance_metrics",
    "forgetting",
    "forgetting_of_tasks",
    "forward_transfer",
    "gating_metrics",
    "learning_accuracy",
    "minimum_accuracy",
    "restriction_metrics",
    "skipped_steps_metrics",
    "worst_case_accuracy",
]

__getattr__, __dir__ = public_names(
    __name__,
    {
        "avalanche_mgem.evaluation.accuracy": ("AccuracyMatrix", "accuracy_matrix_metrics"),
        "avalanche_mgem.evaluation.csv_logger": ("ScalarCSVLogger",),
        "avalanche_mgem.evaluation.curve": ("AccuracyCurve",),
        "avalanche_mgem.evaluation.decisions": (
            "DecisionMetric",
            "ShowsDecision",
            "decision_metrics",
        ),
        "avalanche_mgem.evaluation.distance": ("DistanceMetric", "distance_metrics"),
        "avalanche_mgem.evaluation.every": ("EvaluateEvery",),
        "avalanche_mgem.evaluation.gating": ("GatingMetric", "ShowsMask", "gating_metrics"),
        "avalanche_mgem.evaluation.matrix": (
            "average_accuracy",
            "average_incremental_accuracy",
            "backward_transfer",
            "forgetting",
            "forgetting_of_tasks",
            "forward_transfer",
            "learning_accuracy",
            "minimum_accuracy",
            "worst_case_accuracy",
        ),
        "avalanche_mgem.evaluation.nonfinite": (
            "ShowsSkippedSteps",
            "SkippedSteps",
            "skipped_steps_metrics",
        ),
        "avalanche_mgem.evaluation.restriction": ("RestrictionMetric", "restriction_metrics"),
    },
)
