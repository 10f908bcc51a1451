import numpy as np
import pytest

from avalanche_mgem.theory import Outcome, TwoTasks, outcome, simulate

# n, p, p2, moving, |u|, |q1|, distance, noise, cosine: frozen, initialized and in between, more and
# fewer shared parameters than of the task's own, with and without noise, near and far.
GRID = [
    (20, 100, 60, 0, 1.0, 2.0, 1.0, 0.1, 0.0),
    (20, 100, 60, 100, 1.0, 2.0, 1.0, 0.1, 0.0),
    (20, 100, 60, 40, 1.0, 2.0, 1.0, 0.1, 0.0),
    (20, 100, 60, 0, 0.5, 3.0, 0.3, 0.1, 0.5),
    (20, 100, 60, 100, 0.5, 3.0, 3.0, 0.1, -0.5),
    (5, 10, 30, 0, 2.0, 1.0, 1.0, 1.0, 1.0),
    (5, 10, 30, 3, 2.0, 1.0, 1.0, 1.0, -1.0),
    (5, 10, 30, 10, 2.0, 1.0, 1.0, 1.0, 0.3),
    (10, 80, 5, 16, 1.0, 1.0, 2.0, 0.0, -0.7),
    (10, 80, 5, 80, 1.0, 1.0, 2.0, 0.0, 0.7),
    (10, 1, 40, 1, 3.0, 0.0, 1.0, 0.5, 0.0),
    (10, 1, 40, 0, 3.0, 1.0, 0.0, 0.5, 0.0),
    (1, 4, 16, 2, 1.0, 1.0, 1.0, 2.0, 0.9),
    (30, 40, 60, 7, 0.0, 1.0, 1.0, 0.2, -0.2),
    (8, 30, 25, 15, 1.0, 4.0, 4.0, 0.3, -0.5),
    (10, 20, 20, 0, 4.0, 1.0, 1.0, 1.0, 0.0),
]
NAMES = ("n", "p", "p2", "moving", "shared_norm", "specific_norm", "distance", "noise", "cosine")


def make(*row):
    setting = dict(zip(NAMES, row, strict=True))
    moving = setting.pop("moving")
    return TwoTasks(**setting), moving


def deviations(row, seed, runs=2500):
    """Simulated minus expected, in standard errors, for the six quantities of an outcome."""
    tasks, moving = make(*row)
    found, expected = simulate(tasks, moving, runs=runs, seed=seed), outcome(tasks, moving)
    assert np.all(np.array(found.standard_error) > 0)
    return (np.array(found.mean) - np.array(expected)) / np.array(found.standard_error)


def test_closed_forms_hold_within_three_standard_errors_over_the_grid():
    # 96 numbers. 3 is what a right formula leaves now and then: with others it would fail in about
    # one seed of four, so the seeds are fixed. A wrong one shows in the root mean square, which is
    # about 1 for a right one, and in the mean of the signs.
    away = np.array([deviations(row, seed) for seed, row in enumerate(GRID)])
    worst = np.unravel_index(np.abs(away).argmax(), away.shape)
    assert np.abs(away).max() < 3, f"{Outcome._fields[worst[1]]} of {GRID[worst[0]]}"
    assert 0.7 < np.sqrt(np.mean(away**2)) < 1.3
    assert abs(away.mean()) < 0.5


def reference(setting, moving, runs, seed):
    """Least squares a run at a time, judged by fresh samples: [runs, 3] as (before, first, second).

    numpy's lstsq gives the minimum-norm solution.
    """
    random = np.random.default_rng(seed)
    n, p, p2 = setting["n"], setting["p"], setting["p2"]
    u = random.standard_normal(p)
    u *= setting["shared_norm"] / np.linalg.norm(u)
    q1, step = np.zeros(p2), np.zeros(p2)
    q1[-1], step[0] = setting["specific_norm"], setting["distance"]
    q2 = q1 + step
    moves = np.zeros(p + p2, dtype=bool)
    errors = []
    for _ in range(runs):
        moves[:p] = random.permutation(p) < moving
        moves[p:] = True
        x, z = random.standard_normal((n, p)), random.standard_normal((n, p2))
        y = x @ u + z @ q1 + setting["noise"] * random.standard_normal(n)
        learnt = np.linalg.lstsq(np.hstack([x, z]), y, rcond=None)[0]
        x, z = random.standard_normal((n, p)), random.standard_normal((n, p2))
        y = x @ u + z @ q2 + setting["noise"] * random.standard_normal(n)
        features, final = np.hstack([x, z]), learnt.copy()
        final[moves] += np.linalg.lstsq(features[:, moves], y - features @ learnt, rcond=None)[0]
        x, z = random.standard_normal((50, p)), random.standard_normal((50, p2))
        judged = [(learnt, q1), (final, q1), (final, q2)]
        wrong = [np.hstack([x, z]) @ w - x @ u - z @ q for w, q in judged]
        errors.append([np.mean(one**2) for one in wrong])
    return np.array(errors)


@pytest.mark.parametrize("moving", [0, 12, 30])
def test_definitions_by_a_slow_and_obvious_reference(moving):
    setting = {"n": 8, "p": 30, "p2": 25, "shared_norm": 1.0, "specific_norm": 2.0}
    setting |= {"distance": 1.5, "noise": 0.3}
    errors = reference(setting, moving, runs=500, seed=moving)
    expected = outcome(TwoTasks(**setting), moving)
    for values, name in zip(errors.T, ("before", "first", "second"), strict=True):
        standard_error = values.std(ddof=1) / np.sqrt(len(values))
        assert values.mean() == pytest.approx(
            float(getattr(expected, name)), abs=3 * standard_error
        )
    change = errors[:, 1] - errors[:, 0]
    standard_error = change.std(ddof=1) / np.sqrt(len(change))
    assert change.mean() == pytest.approx(float(expected.forgetting), abs=3 * standard_error)


def test_a_seed_gives_the_same_again_and_touches_no_other_generator():
    tasks, moving = make(*GRID[6])
    state = np.random.get_state()[1].tolist()
    first, again = (simulate(tasks, moving, runs=20, seed=3) for _ in range(2))
    assert first == again
    assert first.runs == 20
    assert first.mean != simulate(tasks, moving, runs=20, seed=4).mean
    assert np.random.get_state()[1].tolist() == state


def test_many_runs_are_trained_in_batches(monkeypatch):
    tasks, moving = make(*GRID[6])
    whole = simulate(tasks, moving, runs=200)
    monkeypatch.setattr("avalanche_mgem.theory.simulation._BATCH", 1500)  # 7 runs of 5 x 40
    parts = simulate(tasks, moving, runs=200)
    assert whole.mean != parts.mean
    assert parts.mean.second == pytest.approx(whole.mean.second, rel=0.3)
    monkeypatch.setattr("avalanche_mgem.theory.simulation._BATCH", 1)
    assert np.isfinite(simulate(tasks, moving, runs=3).mean).all()


def test_more_runs_give_smaller_standard_errors():
    tasks, moving = make(*GRID[0])
    few, many = (simulate(tasks, moving, runs=runs) for runs in (200, 3200))
    ratio = np.array(few.standard_error) / np.array(many.standard_error)
    np.testing.assert_allclose(ratio, 4, rtol=0.25)


def test_what_cannot_be_simulated_is_refused():
    tasks, _ = make(*GRID[0])
    with pytest.raises(ValueError, match="runs must be a whole number >= 2, got 1"):
        simulate(tasks, runs=1)
    with pytest.raises(ValueError, match="moving must be <= p, got 101"):
        simulate(tasks, 101)
    with pytest.raises(ValueError, match=r"moving must be a whole number >= 0, got 0\.5"):
        simulate(tasks, 0.5)
    many, _ = make(20, 100, 60, 0, 1.0, 2.0, [1.0, 2.0], 0.1, 0.0)
    with pytest.raises(ValueError, match=r"tasks must be one pair, got an array of shape \(2,\)"):
        simulate(many)
