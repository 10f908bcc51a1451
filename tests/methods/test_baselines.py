"""Settings of Avalanche's strategies are checked before anything is trained."""

import pytest

from avalanche_mgem.experiment import METHODS
from avalanche_mgem.methods.baselines import check_baseline
from avalanche_mgem.methods.penalties import LwF, SynapticIntelligence


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"si_lambda": -1}, "si_lambda must be a finite number >= 0"),
        ({"si_lambda": []}, "si_lambda must have at least 1 values"),
        ({"si_lambda": [1.0, "2"]}, "si_lambda must be a finite number >= 0, got '2'"),
        ({"alpha": "abc"}, "alpha must be a finite number"),
        ({"alpha": [1.0, 2.0]}, r"alpha must have at least 3 values .*got \[1.0, 2.0\]"),
        ({"temperature": 0}, "temperature must be a finite number > 0"),
        ({"eps": 0.0}, "eps must be a finite number > 0"),
        ({"mem_size": 0}, "mem_size must be a whole number >= 1"),
        ({"mode": "abc"}, "mode: unknown 'abc'"),
        ({"sample_size": 2}, "sample_size=2 must be at least the number of experiences, 3"),
    ],
)
def test_bad_settings_are_named_first(settings, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        check_baseline(settings, 3)


def test_weights_may_be_one_for_each_experience():
    check_baseline({"alpha": [0.0, 1, 2.0]}, 3)
    check_baseline({"si_lambda": (1.0,)}, 3)


def test_every_baseline_with_settings_checks_them():
    theirs = [
        method
        for method in METHODS.values()
        if method.settings
        and (
            method.strategy in (LwF, SynapticIntelligence)
            or getattr(method.strategy, "__module__", "").startswith("avalanche.")
        )
    ]
    assert len(theirs) >= 7
    assert all(method.check is check_baseline for method in theirs)
