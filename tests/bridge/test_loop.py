"""Training loops that do not call our plugins: refused before training, or told after a step."""

import copy

import pytest
import torch.optim.optimizer as optimizer_hooks
from avalanche.training.supervised import MER, Naive
from tiny import Call, domain_stream, make_model, make_strategy, parameter_vector, train

from avalanche_mgem import HybridMagnitudePlugin, MGEMPlugin, MIGUPlugin
from avalanche_mgem.bridge.precision import with_mixed_precision
from avalanche_mgem.plugins import ClipGradientPlugin

OURS = {
    "MGEMPlugin": lambda: MGEMPlugin(6, seed=0),
    "MIGUPlugin": lambda: MIGUPlugin(0.5),
    "ClipGradientPlugin": lambda: ClipGradientPlugin(1.0),
}
EVENTS = {
    "MGEMPlugin": ("before_training_iteration", "after_backward", "before_update", "after_update"),
    "MIGUPlugin": ("before_training_iteration", "after_backward", "before_update", "after_update"),
    "ClipGradientPlugin": ("before_update", "after_update"),
}


class OwnLoop(Naive):
    """Avalanche's loop, without some of its events."""

    leaves_out = ()

    def _event(self, name):
        if name not in self.leaves_out:
            getattr(self, f"_{name}")()

    def training_epoch(self, **kwargs):
        for self.mbatch in self.dataloader:  # noqa: B020
            self._unpack_minibatch()
            self._event("before_training_iteration")
            self.optimizer.zero_grad()
            self._event("before_forward")
            self.mb_output = self.forward()
            self._event("after_forward")
            self.loss = self.criterion()
            self._event("before_backward")
            self.backward()
            self._event("after_backward")
            self._event("before_update")
            self.optimizer_step()
            self._event("after_update")
            self._event("after_training_iteration")


@pytest.mark.parametrize("plugin", OURS)
def test_meta_learning_is_refused_before_training(plugin):
    model = make_model()
    before = parameter_vector(model)
    strategy = make_strategy(model, [OURS[plugin]()], strategy=MER)
    with pytest.raises(ValueError, match=f"{plugin} does not go together with MER: .* never calls"):
        strategy.train(domain_stream().train_stream[0])
    assert (parameter_vector(model) == before).all()


def test_what_is_frozen_is_frozen_in_meta_learning_too():
    model, start = make_model(), []
    plugin = HybridMagnitudePlugin("frozen", low=0)
    note = Call(before_training_exp=lambda s: start.append(s.model[0].weight.detach().clone()))
    strategy = make_strategy(model, [plugin, note], strategy=MER, mem_size=6, n_inner_steps=1)
    train(strategy, domain_stream(2).train_stream)
    assert not (start[0] == start[1]).all()
    assert (model[0].weight == start[1]).all()


@pytest.mark.parametrize(
    ("plugin", "event"), [(plugin, event) for plugin in OURS for event in EVENTS[plugin]]
)
def test_a_loop_without_an_event_is_told_after_its_first_step(plugin, event):
    kind = type("Mine", (OwnLoop,), {"leaves_out": (event,)})
    steps = Call(after_training_iteration=lambda s: steps.seen.append(1))
    steps.seen = []
    strategy = make_strategy(make_model(), [steps, OURS[plugin]()], strategy=kind)
    said = f"{plugin} does not go together with Mine: .* without calling the plugin's {event}"
    with pytest.raises(RuntimeError, match=said):
        strategy.train(domain_stream().train_stream[0])
    assert len(steps.seen) == 1
    assert not optimizer_hooks._global_optimizer_pre_hooks


@pytest.mark.parametrize("plugin", OURS)
def test_a_loop_that_calls_nothing_is_told_after_the_experience(plugin):
    events = ("before_forward", "after_forward", "before_backward", "after_training_iteration")
    leaves_out = (*events, *EVENTS["MGEMPlugin"])
    kind = type("Mine", (OwnLoop,), {"leaves_out": leaves_out})
    strategy = make_strategy(make_model(), [OURS[plugin]()], strategy=kind)
    with pytest.raises(RuntimeError, match=f"{plugin} does not go together with Mine"):
        strategy.train(domain_stream().train_stream[0])


class Accumulating(OwnLoop):
    """Steps at every second iteration, and calls what is of a step there only."""

    def _event(self, name):
        self.count = getattr(self, "count", 0) + (name == "after_backward")
        of_a_step = name in ("after_backward", "before_update", "after_update")
        if not of_a_step or self.count % 2 == 0:
            super()._event(name)

    def optimizer_step(self, **kwargs):
        if self.count % 2 == 0:
            super().optimizer_step()


@pytest.mark.parametrize("plugin", OURS)
@pytest.mark.parametrize("kind", [OwnLoop, Accumulating, with_mixed_precision(Naive)])
def test_loops_that_call_what_is_needed_train(kind, plugin):
    strategy = make_strategy(make_model(), [OURS[plugin]()], strategy=kind)
    train(strategy, domain_stream(2).train_stream)


@pytest.mark.parametrize("plugin", OURS)
def test_a_copy_in_the_midst_of_an_experience_does_not_guess(plugin):
    ours, copies = OURS[plugin](), []
    note = Call(after_backward=lambda s: copies.append(copy.deepcopy(ours)))
    strategy = make_strategy(make_model(), [note, ours], strategy=OwnLoop)
    strategy.train(domain_stream().train_stream[0])
    copies[0].after_training_iteration(strategy)
