"""What must hold of our plugins, and of what Avalanche froze, in a run beside Avalanche's own."""

from functools import partial

import numpy as np
import torch
from avalanche.training.plugins import SupervisedPlugin

from avalanche_mgem import HybridMagnitudePlugin, MGEMPlugin, MIGUPlugin
from avalanche_mgem.huggingface import IncLoRAPlugin, LoRAPlugin
from avalanche_mgem.model.layers import resolve_gated_layers


def mgem(**arguments):
    return MGEMPlugin(6, seed=0, ridge="relative", **arguments)  # GEM's ridge leaves the cone a bit


OURS = {
    "MGEMPlugin": mgem,
    "MGEMPlugin(restrict='update')": partial(mgem, restrict="update"),
    "MIGUPlugin": lambda: MIGUPlugin(0.5, freeze="update"),
    "HybridMagnitudePlugin": lambda: HybridMagnitudePlugin("frozen", low=1),
    "LoRAPlugin": lambda: LoRAPlugin(2, 2, seed=0),
    "IncLoRAPlugin": lambda: IncLoRAPlugin(2, 2, seed=0),
}


class Look(SupervisedPlugin):
    """Looks at how each iteration has moved the parameters, under plain SGD.

    Attributes:
        wrong: what was found.
        looked: how often our plugin was seen to restrict something.
    """

    def __init__(self, ours):
        super().__init__()
        self.ours, self.wrong, self.looked = ours, set(), 0
        self._before, self._rows = {}, []

    def before_training_iteration(self, strategy, **kwargs):
        named = dict(strategy.model.named_parameters())
        self._before = {name: p.detach().clone() for name, p in named.items()}
        self._rows, self._still = [], {}

    def before_backward(self, strategy, **kwargs):
        # PackNet has chosen in the forward pass.
        model = strategy.model
        self._still = {name: _still(model, name, p) for name, p in model.named_parameters()}

    def before_update(self, strategy, **kwargs):
        if isinstance(self.ours, MGEMPlugin) and len(self.ours._bounds):
            rows = self.ours._matrix.rows[: len(self.ours._bounds)]
            self._rows = [row.clone() for row in rows if bool(row.any())]

    def after_training_iteration(self, strategy, **kwargs):
        now = {n: p.detach() for n, p in strategy.model.named_parameters()}
        moved = {n: now[n] != before for n, before in self._before.items() if n in now}
        for name, still in self._still.items():
            if bool((moved[name] & still).any()):
                self.wrong.add(f"{name} was frozen and has moved")
        if isinstance(self.ours, MGEMPlugin) and self._rows:
            self._look_at_cone(now)
        elif isinstance(self.ours, MIGUPlugin) and self.ours.last_mask is not None:
            self._look_at_rows(strategy.model, moved)
        elif isinstance(self.ours, HybridMagnitudePlugin):
            decision = self.ours.last_decision
            left_out = set(decision.modules) - set(decision.trained) if decision else set()
            for name, where in moved.items():
                if name.startswith(tuple(f"{each}." for each in left_out)):
                    self.looked += 1
                    if bool(where.any()):
                        self.wrong.add(f"{name} is in a frozen module and has moved")
        elif isinstance(self.ours, LoRAPlugin):
            for name, where in moved.items():
                if "base_layer" in name:
                    self.looked += 1
                    if bool(where.any()):
                        self.wrong.add(f"{name} is below an adapter and has moved")

    def _look_at_cone(self, now):
        names = self.ours._names
        step = torch.cat([(self._before[n] - now[n]).flatten() for n in names]).double()
        for row in self._rows:
            size = float(row.norm() * step.norm())
            self.looked += 1
            if float(row.double() @ step) < -1e-3 * size:
                self.wrong.add("a step has left the cone")

    def _look_at_rows(self, model, moved):
        names = {id(p): n for n, p in model.named_parameters()}
        for layer in resolve_gated_layers(model, self.ours.last_mask):
            for rows in layer.rows:
                held = ~self.ours.last_mask[layer.name]
                name = names[id(rows.parameter)]
                if name in moved:
                    self.looked += 1
                    if bool(rows.of(moved[name])[held].any()):
                        self.wrong.add(f"masked rows of {name} have moved")


def _still(model, name, parameter):
    """Where a parameter must not move, as Avalanche has it."""
    owner = model.get_submodule(name.rpartition(".")[0].removesuffix(".wrappee"))
    mask = getattr(owner, "unfrozen_mask", None)  # of PackNet
    if name.endswith("weight") and isinstance(mask, torch.Tensor):
        return ~mask.clone()
    return torch.full_like(parameter, not parameter.requires_grad, dtype=torch.bool)


def trained(run, name, make):
    """Train a case with one of our plugins; return the strategy and what was looked at."""
    ours = make()
    strategy, experiences = run(name, [ours])
    look = Look(ours)
    strategy.plugins.append(look)
    for index, experience in enumerate(experiences):
        torch.manual_seed(100 + index)
        np.random.seed(index)
        strategy.train(experience)
    return strategy, look
