"""Two processes that train one model together, by gloo on a CPU."""

import pytest
from processes import results_of


@pytest.fixture(scope="module")
def results(tmp_path_factory, worker_id):
    """What the pair found, see process_cases.py."""
    return results_of("process_cases", tmp_path_factory, worker_id)


@pytest.fixture(
    scope="module",
    params=["process_cases", pytest.param("more_process_cases", marks=pytest.mark.slow)],
)
def found(request, tmp_path_factory, worker_id):
    """What it found in the cases of a module."""
    return results_of(request.param, tmp_path_factory, worker_id)


def test_two_with_half_batches_are_one_with_the_whole(found):
    told = {name: case["one"] for name, case in found["equal"].items()}
    assert len(told) >= 8
    assert not {name: one for name, one in told.items() if one["distance"] > 1e-5}
    assert not [name for name, one in told.items() if not one["noted"]]  # the same decisions
    assert all(one["names"] for one in told.values())  # without the wrapper's "module."


def test_parameters_and_decisions_are_the_same_to_the_bit(found):
    cases = found["equal"] | found["agree"]
    assert not [name for name, case in cases.items() if not case["same"]]
    assert not [name for name, case in cases.items() if not case["same_noted"]]


def test_the_cases_restrict_something(found):
    for name, case in (found["equal"] | found["agree"]).items():
        if "mgem" in name:
            assert "('violated', True)" in case["noted"], name
        if "migu" in name:
            assert any("False" in noted for noted in case["noted"] if "mask" in noted), name
        if "hybrid" in name:
            assert len([noted for noted in case["noted"] if "trained" in noted]) > 1, name


def test_a_loss_that_is_nan_in_one_process_is_skipped_by_both(results):
    skipped = results["agree"]["NaN in one process"]["skipped"]
    assert len(set(skipped)) == 1
    assert skipped[0] > 0


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("not wrapped, mgem", "the gradient of '0.weight' is not the same in all processes"),
        ("not wrapped, migu", "the gradient of '0.weight' is not the same in all processes"),
        ("not wrapped, hybrid", "the gradient of '0.weight' is not the same in all processes"),
        ("other models", "the parameter '2.bias' is not the same in all processes"),
        ("heads that came since", "the parameter 'classifier.classifiers.1.classifier.weight'"),
        ("no unused parameters", "only with find_unused_parameters=True"),
        ("another number of groups", r"the memories of the processes have [2, 3] groups"),
    ],
)
def test_what_would_drift_apart_is_refused_by_both(results, case, said):
    errors = results["refused"][case]
    assert len(errors) == 2
    assert all(error is not None and said in error for error in errors), errors
