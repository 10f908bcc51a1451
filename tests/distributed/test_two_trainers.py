"""The three callbacks in two processes of transformers' Trainer, by gloo on a CPU."""

import pytest
from processes import results_of


@pytest.mark.slow
def test_two_trainers_are_one_with_the_whole_minibatch(tmp_path_factory, worker_id):
    results = results_of("trainer_cases", tmp_path_factory, worker_id)
    assert results.pop("type") == "MULTI_CPU"
    assert len(results) == 9
    assert not [name for name, case in results.items() if not (case["same"] and case["same_shown"])]
    assert not {name: case for name, case in results.items() if case["distance"] > 1e-5}
    assert all(case["shown"] for case in results.values())
