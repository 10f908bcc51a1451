"""Schedules of the memory strength."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avalanche_mgem.restriction import (
    ConstantSchedule,
    CosineSchedule,
    LinearSchedule,
    Schedule,
)

RAMPS = [LinearSchedule, CosineSchedule]
strengths = st.floats(0.0, 10.0)


@pytest.mark.parametrize("ramp", RAMPS)
@given(start=strengths, end=strengths, steps=st.integers(2, 50), over=st.booleans())
def test_a_ramp_goes_from_start_to_end_and_never_back(ramp, start, end, steps, over):
    schedule = ramp(start, end, steps, "experiences" if over else "iterations")
    at = [
        schedule(experience=t if over else 7, iteration=7 if over else t) for t in range(steps + 3)
    ]
    assert at[0] == pytest.approx(start)
    assert at[steps - 1 :] == pytest.approx([end] * 4)
    rises = [b - a for a, b in pairwise(at)]
    assert all(rise * (end - start) >= -1e-12 for rise in rises)


@pytest.mark.parametrize("ramp", RAMPS)
def test_a_ramp_is_half_way_in_the_middle(ramp):
    assert ramp(0.0, 1.0, 11)(experience=5, iteration=0) == pytest.approx(0.5)


@pytest.mark.parametrize("schedule", [ConstantSchedule(1.0), *(r(1.0, 0.0, 3) for r in RAMPS)])
def test_every_schedule_keeps_the_protocol(schedule):
    assert isinstance(schedule, Schedule)
    assert schedule(experience=0, iteration=0) == 1.0


@pytest.mark.parametrize("ramp", RAMPS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1.0, 0.0, 3), "start must be a finite number >= 0"),
        ((0.0, float("inf"), 3), "end must be a finite number >= 0"),
        ((0.0, 1.0, 1), "steps must be a whole number >= 2"),
        ((0.0, 1.0, 3, "iteration"), "over: unknown 'iteration'; did you mean 'iterations'"),
    ],
)
def test_bad_arguments_are_named(ramp, arguments, message):
    with pytest.raises(ValueError, match=message):
        ramp(*arguments)


def test_a_constant_must_be_finite():
    with pytest.raises(ValueError, match="value must be a finite number"):
        ConstantSchedule(float("nan"))
