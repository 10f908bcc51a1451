"""The CSV file of scalar metrics."""

import csv
import math

import numpy as np
import pytest
import torch

from avalanche_mgem.evaluation import ScalarCSVLogger


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_numbers_are_written_and_nothing_else(tmp_path):
    path = tmp_path / "new" / "metrics.csv"
    logger = ScalarCSVLogger(path)
    for value in (0.1, 1, np.float32(0.5), math.nan, torch.ones(2), "text", None):
        logger.log_single_metric("a, b", value, 7)
    values = [float(value) for _, _, value in read(path)[1:]]
    np.testing.assert_equal(values, [0.1, 1.0, 0.5, math.nan])
    assert read(path)[:2] == [["metric", "step", "value"], ["a, b", "7", "0.1"]]


def test_an_existing_log_is_continued(tmp_path):
    path = tmp_path / "metrics.csv"
    for value in (1.0, 2.0):
        ScalarCSVLogger(path).log_single_metric("m", value, 0)
    assert [row[2] for row in read(path)] == ["value", "1.0", "2.0"]


def test_what_is_no_such_log_is_left_alone(tmp_path):
    path = tmp_path / "notes.csv"
    path.write_text("mine,do not touch\n")
    with pytest.raises(ValueError, match=r"notes\.csv exists and is not a log"):
        ScalarCSVLogger(path)
    assert path.read_text() == "mine,do not touch\n"
    with pytest.raises(ValueError, match="path must name a file"):
        ScalarCSVLogger(tmp_path)
