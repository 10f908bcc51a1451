"""The accuracy matrix, and metrics for Avalanche's EvaluationPlugin."""

from avalanche_mgem.evaluation.accuracy import AccuracyMatrix, accuracy_matrix_metrics
from avalanche_mgem.evaluation.csv_logger import ScalarCSVLogger
from avalanche_mgem.evaluation.matrix import (
    average_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
    learning_accuracy,
)
from avalanche_mgem.evaluation.restriction import RestrictionMetric, restriction_metrics

__all__ = [
    "AccuracyMatrix",
    "RestrictionMetric",
    "ScalarCSVLogger",
    "accuracy_matrix_metrics",
    "average_accuracy",
    "backward_transfer",
    "forgetting",
    "forward_transfer",
    "learning_accuracy",
    "restriction_metrics",
]
