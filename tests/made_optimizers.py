"""Optimisers with the groups, the state and the ways of stepping of those that users bring along.

Strategies that step in their ways are here too.
"""

from collections import defaultdict

import torch
from avalanche.training.supervised import Naive
from torch import nn, optim
from torch.optim import SGD, Adam, Optimizer


class Scaled(Optimizer):
    """Plain SGD whose step size is not in its groups' lr: `size` times lr, where there is one."""

    def __init__(self, params, size=0.1, **groups):
        super().__init__(params, groups)
        self.size = size

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            lr = group.get("lr", 1.0)
            size = self.size * (1.0 if lr in (None, "auto") else lr) * group.get("d", 1.0)
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad, alpha=float(size))
        return loss


class Multiplier(Scaled):
    """Made with lr=1, a multiple of what it finds itself, as Prodigy, D-Adaptation and DoG."""

    def __init__(self, params, lr=1.0, size=0.1):
        super().__init__(params, size, lr=lr)


# Each steps as SGD with lr=0.1 does.
TENTH = {
    "lr is None": lambda p: Scaled(p, lr=None),
    "no lr": lambda p: Scaled(p, weight_decay=0.0),
    "lr is no number": lambda p: Scaled(p, lr="auto"),
    "lr multiplies d": lambda p: Scaled(p, size=1.0, lr=1.0, d=0.1),
    "lr=1 by default": Multiplier,
    "lr=0.5 of it": lambda p: Multiplier(p, lr=0.5, size=0.2),
    "lr is a tensor": lambda p: SGD(p, lr=torch.tensor(0.1)),
}


class ScheduleFree(Optimizer):
    """SGD as Schedule-Free makes it: what is stepped is a point between z and the average x."""

    def __init__(self, params, lr=0.1, beta=0.9):
        super().__init__(params, {"lr": lr, "beta": beta, "k": 0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["k"] += 1
            weight, beta, lr = 1 / group["k"], group["beta"], group["lr"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                z = self.state[p].setdefault("z", p.clone())
                p.lerp_(z, weight)
                p.add_(p.grad, alpha=lr * (beta * (1 - weight) - 1))
                z.sub_(p.grad, alpha=lr)


class SAM(Optimizer):
    """Sharpness-aware minimisation, as the usual implementation has it."""

    def __init__(self, params, base=SGD, rho=0.05, **options):
        super().__init__(params, {"rho": rho, **options})
        self.base_optimizer = base(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self, zero_grad=False):
        used = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
        scale = self.defaults["rho"] / (torch.stack([p.grad.norm() for p in used]).norm() + 1e-12)
        for p in used:
            self.state[p]["old"] = p.clone()
            p.add_(p.grad * scale)
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad=False):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data = self.state[p]["old"]
        self.base_optimizer.step()
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def step(self, closure=None):
        assert closure is not None
        closure = torch.enable_grad()(closure)
        self.first_step(zero_grad=True)
        closure()
        self.second_step()


def _sgd(params):
    return SGD(params, lr=0.1)


class Slow:
    """Every second step, parameters go back half of the way to where they were."""

    count = 0

    def look(self, closure):
        for p in (p for group in self.param_groups for p in group["params"]):
            self.state[p].setdefault("slow", p.detach().clone())
        loss = self.optimizer.step(closure) if closure else self.optimizer.step()
        self.count += 1
        if self.count % 2 == 0:
            with torch.no_grad():
                for p in (p for group in self.param_groups for p in group["params"]):
                    p.lerp_(self.state[p]["slow"], 0.5)
                    self.state[p]["slow"] = p.clone()
        return loss


class Lookahead(Slow, Optimizer):
    """A lookahead around another optimiser."""

    def __init__(self, params, base=_sgd):
        self.optimizer = base(params)
        super().__init__(self.optimizer.param_groups, {})
        self.param_groups = self.optimizer.param_groups

    def step(self, closure=None):
        return self.look(closure)


class UnhookedLookahead(Slow):
    """The same, no optimiser of torch's: it calls no hooks itself."""

    def __init__(self, params, base=_sgd):
        self.optimizer = base(params)
        self.param_groups, self.defaults = self.optimizer.param_groups, {}
        self.state = defaultdict(dict)

    def zero_grad(self, set_to_none=True):
        self.optimizer.zero_grad(set_to_none)

    def step(self, closure=None):
        return self.look(closure)


class Unhooked:
    """No optimiser of torch's, as apex-like wrappers: it steps by itself."""

    def __init__(self, params, lr=0.1):
        self.param_groups = [{"params": list(params), "lr": lr}]
        self.state, self.defaults = {}, {"lr": lr}

    def zero_grad(self, set_to_none=True):
        for p in self.param_groups[0]["params"]:
            p.grad = None

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad, alpha=group["lr"])
        return loss


class StepsAndDecays(SGD):
    """Calls its parent's step, and moves on: torch calls the hooks of both."""

    def step(self, closure=None):
        loss = super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.mul_(0.99)
        return loss


# What moves parameters in ways of its own, from the parameters.
UNUSUAL = {
    "schedule-free": ScheduleFree,
    "lookahead": Lookahead,
    "lookahead of adam": lambda p: Lookahead(p, lambda q: Adam(q, lr=0.05, weight_decay=0.1)),
    "unhooked lookahead": UnhookedLookahead,
    "unhooked": Unhooked,
    "steps and decays": lambda p: StepsAndDecays(p, lr=0.1, momentum=0.9),
    "adadelta": optim.Adadelta,
    "rprop": optim.Rprop,
}


def gradients_anew(strategy):
    """Make the gradients of the minibatch once more; return the loss."""
    strategy.optimizer.zero_grad()
    loss = strategy._criterion(strategy.model(strategy.mb_x), strategy.mb_y)
    loss.backward()
    return loss


class WithClosure(Naive):
    """Steps by a closure, as LBFGS must."""

    def optimizer_step(self):
        self.optimizer.step(lambda: gradients_anew(self))


class ByKeyword(Naive):
    """The same, by keyword."""

    def optimizer_step(self):
        self.optimizer.step(closure=lambda: gradients_anew(self))


class WithAssignedGradients(Naive):
    """Steps by a closure without a backward pass that adds to gradients."""

    def optimizer_step(self):
        def closure():
            used = [p for p in self.model.parameters() if p.grad is not None]
            loss = self._criterion(self.model(self.mb_x), self.mb_y)
            for p, gradient in zip(used, torch.autograd.grad(loss, used), strict=True):
                p.grad = gradient
            return loss

        self.optimizer.step(closure)


class WithEvents(Naive):
    """Steps by a closure that calls what an iteration calls, events included."""

    def optimizer_step(self):
        def closure():
            self.optimizer.zero_grad()
            self.mb_output = self.forward()
            self.loss = self.criterion()
            self._before_backward()
            self.backward()
            self._after_backward()
            return self.loss

        self.optimizer.step(closure)


class OnlyTheLoss(Naive):
    """Steps by a closure that makes no gradient."""

    def optimizer_step(self):
        self.optimizer.step(lambda: self.loss)


class TwoSteps(Naive):
    """Runs the model again between SAM's two steps."""

    def optimizer_step(self):
        self.optimizer.first_step(zero_grad=True)
        gradients_anew(self)
        self.optimizer.second_step(zero_grad=True)


class Again(Naive):
    """Makes the gradients once more before a plain step, in the tensors that are there."""

    def optimizer_step(self):
        self.optimizer.zero_grad(set_to_none=False)
        self._criterion(self.model(self.mb_x), self.mb_y).backward()
        self.optimizer.step()


class ByHand(Naive):
    """Moves the parameters itself, as LaMAML does."""

    def optimizer_step(self):
        for p in self.model.parameters():
            if p.grad is not None:
                p.data.sub_(p.grad, alpha=0.1)


class TwoOptimizers(Naive):
    """Has a second optimiser, of the first layer, which the first one has too."""

    shared = True

    def make_optimizer(self, **options):
        super().make_optimizer(**options)
        first = list(self.model[0].parameters())
        if not hasattr(self, "body"):
            self.body = Adam(first, lr=0.05, weight_decay=0.1)
        if not self.shared:
            group = self.optimizer.param_groups[0]
            group["params"] = [p for p in group["params"] if all(p is not own for own in first)]

    def optimizer_step(self):
        self.optimizer.step()
        self.body.step()


class ApartFromTheFirst(TwoOptimizers):
    """The first optimiser has not what the second one has."""

    shared = False


class WithoutTheFirst(ApartFromTheFirst):
    """The first layer is in no optimiser that steps, and in none that anybody knows."""

    def make_optimizer(self, **options):
        super().make_optimizer(**options)
        self.body = None

    def optimizer_step(self):
        self.optimizer.step()


def small_model():
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 6))
