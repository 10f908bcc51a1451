"""Random numbers of one's own."""

import copy
import pickle
import random

import numpy as np
import torch

from avalanche_mgem.model.randomness import RandomStream, preserved_random_state

CPU = torch.device("cpu")


def test_the_global_states_are_as_they_were():
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    with RandomStream(1).active(CPU):
        torch.rand(3), np.random.random(3), random.random()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


def test_it_goes_on_where_it_stopped_and_its_seed_decides():
    def draw(stream):
        with stream.active(CPU):
            return [*torch.rand(3).tolist(), float(np.random.random()), random.random()]

    one, same, other = RandomStream(1), RandomStream(1), RandomStream(2)
    first = draw(one)
    torch.rand(5)
    assert draw(same) == first
    assert draw(other) != first
    copies = [copy.deepcopy(one), pickle.loads(pickle.dumps(one))]
    second = draw(one)
    assert second != first
    assert [draw(c) for c in copies] == [second, second]


def test_every_global_state_is_preserved():
    def draws():
        return random.random(), float(np.random.random()), float(torch.rand(()))

    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = draws()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    with preserved_random_state():
        draws()
    assert draws() == expected
