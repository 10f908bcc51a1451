import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avalanche_mgem.theory import (
    TwoTasks,
    crossing,
    frozen,
    frozen_forgetting,
    initialized,
    optimal_p2,
    outcome,
)

CHECK = {"n": 20, "p": 100, "p2": 60, "shared_norm": 1.0, "specific_norm": 2.0, "noise": 0.1}
NEAR_AND_FAR = {**CHECK, "shared_norm": 0.5, "specific_norm": 3.0, "distance": [0.3, 3.0]}
SIZES = ("shared_norm", "specific_norm", "distance", "noise")


def make(**changes):
    return TwoTasks(**{**CHECK, "distance": 1.0, **changes})


@st.composite
def settings(draw):
    """Any pair of tasks in the domain of frozen training."""
    n, p = draw(st.integers(1, 50)), draw(st.integers(1, 200))
    size = st.floats(0, 10, allow_subnormal=False)
    return {
        "n": n,
        "p": p,
        "p2": n + 2 + draw(st.integers(0, 100)),
        **{name: draw(size) for name in SIZES},
        "cosine": draw(st.floats(-1, 1, allow_subnormal=False)),
    }


def test_the_numbers_that_were_checked_before():
    tasks = make()
    errors = frozen(tasks)
    assert errors.shared == pytest.approx(1.1069, abs=5e-5)
    assert errors.specific == pytest.approx(3.2695, abs=5e-5)
    assert errors.before == errors.shared + errors.specific
    assert errors.forgetting == pytest.approx(-0.184, abs=5e-4)
    assert initialized(tasks).forgetting == pytest.approx(-0.421, abs=5e-4)


def test_frozen_is_better_for_near_tasks_and_initialized_for_far_ones():
    tasks = TwoTasks(**NEAR_AND_FAR)
    assert frozen(tasks).forgetting == pytest.approx([-1.969, 1.001], abs=5e-4)
    assert initialized(tasks).forgetting == pytest.approx([-0.999, 0.115], abs=5e-4)
    where = crossing(tasks)
    assert where[0] == where[1]
    at_it = TwoTasks(**{**NEAR_AND_FAR, "distance": where[0] + np.array([-1e-3, 0, 1e-3])})
    ahead = initialized(at_it).forgetting - frozen(at_it).forgetting
    assert np.sign(ahead.round(9)).tolist() == [1, 0, -1]


def test_where_the_shared_parameters_are_all_wrong_initialized_is_always_better():
    tasks = make(shared_norm=10.0, distance=np.linspace(0, 20, 50))
    assert np.isnan(crossing(tasks)).all()
    assert (initialized(tasks).forgetting < frozen(tasks).forgetting).all()


@given(settings())
def test_the_published_forms_are_the_ends_of_the_one_in_between(setting):
    tasks = TwoTasks(**setting)
    n, p, p2, total = setting["n"], setting["p"], setting["p2"], setting["p"] + setting["p2"]
    d2, sigma2 = setting["distance"] ** 2, setting["noise"] ** 2
    none, every = outcome(tasks, 0), outcome(tasks, p)
    assert none == frozen(tasks)
    assert every == initialized(tasks)
    shared, specific = none.shared, none.specific
    start = 2 * (1 - n / total) * setting["cosine"] * setting["distance"] * setting["specific_norm"]
    to_go, noise = specific + d2 + start, n * (shared + sigma2) / (p2 - n - 1)
    close = {"rel": 1e-9, "abs": 1e-9}
    forgotten = frozen_forgetting(n, p2, specific - d2, shared + sigma2)
    assert none.forgetting == pytest.approx(float(forgotten), **close)
    assert none.second == pytest.approx(shared + (1 - n / p2) * to_go + noise, **close)
    noise = n * sigma2 / (total - n - 1)
    forgotten = n / total * (d2 - shared - specific) + noise
    assert every.forgetting == pytest.approx(forgotten, **close)
    assert every.second == pytest.approx((1 - n / total) * (shared + to_go) + noise, **close)


@given(settings(), st.data())
def test_what_any_training_obeys(setting, data):
    tasks = TwoTasks(**setting)
    moving = data.draw(st.integers(0, setting["p"]))
    errors = outcome(tasks, moving)
    assert min(errors.shared, errors.specific, errors.first, errors.second) >= -1e-9
    assert errors.first - errors.before == pytest.approx(float(errors.forgetting), abs=1e-9)
    # Forgetting is linear in the squared distance.
    trained = moving + setting["p2"]
    there = outcome(TwoTasks(**{**setting, "distance": 0.0}), moving)
    slope = setting["n"] / trained * setting["distance"] ** 2
    assert errors.forgetting - there.forgetting == pytest.approx(slope, rel=1e-6, abs=1e-6)
    # The task's own part points elsewhere, which the past does not feel.
    turned = outcome(TwoTasks(**{**setting, "cosine": 0.0}), moving)
    assert turned.forgetting == errors.forgetting
    # However many parameters move, the two tasks together pay for the distance between them.
    paid = turned.first + turned.second - there.first - there.second
    assert paid == pytest.approx(setting["distance"] ** 2, rel=1e-6, abs=1e-6)


@given(settings(), st.floats(0.01, 100))
def test_errors_are_squares_of_the_units_in_y(setting, scale):
    scaled = {**setting, **{name: scale * setting[name] for name in SIZES}}
    errors, larger = (outcome(TwoTasks(**one), one["p"] // 2) for one in (setting, scaled))
    np.testing.assert_allclose(larger, scale**2 * np.array(errors), rtol=1e-9, atol=1e-9 * scale**2)


@given(settings())
def test_one_more_look_at_the_same_task_without_noise_forgets_nothing(setting):
    same = TwoTasks(**{**setting, "distance": 0.0, "noise": 0.0})
    errors = initialized(same)
    assert errors.forgetting <= 0
    assert errors.first == pytest.approx(float(errors.second), rel=1e-9, abs=1e-12)


@given(st.integers(1, 100), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_optimal_p2_is_the_extremum_where_there_is_one(n, xi, eta):
    best = optimal_p2(n, xi, eta)
    if xi <= eta:
        assert np.isnan(best)
        falling = frozen_forgetting(n, n + 1 + np.geomspace(0.1, 1e4, 300), xi, eta)
        assert (np.diff(falling) <= 1e-9).all()
        return
    lowest = -n / (n + 1) * (np.sqrt(xi) - np.sqrt(eta)) ** 2
    assert frozen_forgetting(n, best, xi, eta) == pytest.approx(lowest, rel=1e-6, abs=1e-9 * xi)
    around = n + 1 + (best - n - 1) * np.geomspace(0.2, 5, 41)
    values = frozen_forgetting(n, around, xi, eta)
    assert values.argmin() == 20 or xi < 1.01 * eta  # nearly flat there
    assert (values >= lowest - 1e-9 * xi).all()


def test_optimal_p2_needs_xi_above_eta_above_0():
    assert optimal_p2(20, 4.0, 1.0) == 42  # 21 / (1 - 1/2)
    nowhere = optimal_p2(20, [1.0, 0.5, -1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0, 0.0])
    assert np.isnan(nowhere).all()
    barely = optimal_p2(20, np.nextafter(1.0, 2.0), 1.0)
    assert np.isfinite(barely)
    assert barely > 1e16


def test_with_errors_that_follow_p2_the_least_forgetting_lies_elsewhere():
    p2 = np.arange(22, 400)
    tasks = TwoTasks(**{**NEAR_AND_FAR, "p2": p2, "distance": 1.0})
    at_60 = frozen(TwoTasks(**{**NEAR_AND_FAR, "distance": 1.0}))
    held = optimal_p2(20, at_60.specific - 1.0, at_60.shared + 0.01)
    assert held == pytest.approx(33.0, abs=0.05)
    assert p2[frozen(tasks).forgetting.argmin()] == 40


def test_arrays_give_what_scalars_give():
    n, distance, moving = np.array([[5], [20]]), np.array([0.0, 1.0, 2.0]), np.array([0, 50, 100])
    tasks = make(n=n, distance=distance)
    assert tasks.shape == tasks.noise.shape == (2, 3)
    errors = outcome(tasks, moving)
    assert {values.shape for values in errors} == {(2, 3)}
    for i in range(2):
        for j in range(3):
            one = outcome(make(n=n[i, 0], distance=distance[j]), moving[j])
            assert [values[i, j] for values in errors] == list(one)
    assert frozen_forgetting([5, 20], [[30], [40]], 3.0, 1.0).shape == (2, 2)
    assert optimal_p2([5, 20], [[2.0], [3.0]], 1.0).shape == (2, 2)
    assert crossing(tasks).shape == (2, 3)
    assert outcome(tasks, np.zeros((4, 1, 1))).shared.shape == (4, 2, 3)
    assert tasks[1][2].shape == ()
    assert tasks[1][2].distance == 2.0
    assert outcome(tasks[1], moving).second.tolist() == errors.second[1].tolist()


def test_tasks_keep_what_they_were_given():
    distance = np.array([1.0, 2.0])
    tasks = make(distance=distance)
    distance[:] = 7.0
    assert tasks.distance.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 0}, "n must be a whole number >= 1, got 0"),
        ({"n": 20.5}, "n must be a whole number >= 1, got 20.5"),
        ({"n": "many"}, "n must be numbers, got 'many'"),
        ({"p": [100, 0]}, "p must be a whole number >= 1, got 0"),
        ({"p2": 1}, "p2 must be a whole number >= 2, got 1"),
        ({"n": [20, 159]}, r"p2 must be > n \+ 1 - p, got 60 at n = 159 and p = 100"),
        ({"shared_norm": -1.0}, "shared_norm must be >= 0, got -1"),
        ({"specific_norm": np.inf}, "specific_norm must be finite, got inf"),
        ({"distance": np.nan}, "distance must be finite, got nan"),
        ({"noise": -0.1}, "noise must be >= 0, got -0.1"),
        ({"cosine": 1.1}, "cosine must be <= 1, got 1.1"),
        ({"n": [1, 2], "p": [5, 6, 7]}, r"broadcast together: n \(2,\), p \(3,\)"),
    ],
)
def test_tasks_outside_the_domain_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_training_outside_the_domain_is_refused():
    tight = make(n=[20, 60], p2=61)
    for function in (frozen, crossing):
        with pytest.raises(ValueError, match=r"p2 must be > n \+ 1 in frozen.*61 at n = 60"):
            function(tight)
    assert np.isfinite(initialized(tight)).all()
    with pytest.raises(ValueError, match=r"moving must be > n \+ 1 - p2, got 0 at n = 60"):
        outcome(tight, 0)
    with pytest.raises(ValueError, match="moving must be <= p, got 101 at p = 100"):
        outcome(tight, [100, 101])
    for moving in (-1, 0.5):
        with pytest.raises(ValueError, match=f"moving must be a whole number >= 0, got {moving}"):
            outcome(make(), moving)
    with pytest.raises(ValueError, match=r"p2 must be > n \+ 1, got 21 at n = 20"):
        frozen_forgetting(20, [22, 21], 1.0, 1.0)
    with pytest.raises(ValueError, match="eta must be >= 0, got -1"):
        optimal_p2(20, 1.0, -1.0)
    with pytest.raises(ValueError, match=r"shapes .* xi \(2,\), eta \(3,\)"):
        optimal_p2(20, [1.0, 2.0], [1.0, 2.0, 3.0])
