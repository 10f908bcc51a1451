"""What is looked at while a run trains, by a plugin behind all others."""

import torch
from avalanche.models import avalanche_forward
from avalanche.training.plugins import SupervisedPlugin
from torch import nn
from torch.nn.modules import module as torch_module

from avalanche_mgem.model.layers import resolve_gated_layers
from avalanche_mgem.model.partition import make_partition

_MODULE_HOOKS = [name for name in vars(nn.Module()) if name.endswith("_hooks")]
_GLOBAL_HOOKS = [name for name in vars(torch_module) if name.startswith("_global_")]
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def hooks_of(model, optimizer):
    """The names of all kinds of hooks that are anywhere: modules, parameters, optimiser, torch."""
    owners = [*model.modules()]
    found = [name for name in _MODULE_HOOKS for owner in owners if getattr(owner, name)]
    for parameter in model.parameters():
        found += ["parameter"] * bool(parameter._backward_hooks)
        found += ["parameter"] * bool(parameter._post_accumulate_grad_hooks)
    found += [name for name in vars(optimizer) if name.endswith("_hooks") and vars(optimizer)[name]]
    return found + [name for name in _GLOBAL_HOOKS if vars(torch_module)[name]]


class Watch(SupervisedPlugin):
    """Notes what must not move and does, and steps that leave the cone.

    What a step may move is told by the plugins; the memory's gradients are computed anew, one by
    one, except under dropout, where they are the ones that mGEM had.

    Args:
        ours: our plugins by their names.
        optimizer: the level of that factor.

    Attributes:
        wrong: what was found.
        looked: how often each thing was looked at.
    """

    def __init__(self, ours, optimizer):
        super().__init__()
        self.ours, self.plain_sgd = ours, optimizer == "sgd"
        self.wrong = []
        self.looked = {"cone": 0, "rows": 0, "frozen": 0}
        self._before, self._rows, self._statistics = {}, [], {}

    # Before the forward pass has begun, in which a pass of ours would count for MIGU.
    def before_training_iteration(self, strategy, **kwargs):
        self._before = {n: _copies(p, strategy) for n, p in strategy.model.named_parameters()}
        self._rows = list(self._memory_rows(strategy)) if "mgem" in self.ours else []
        self._statistics = {
            f"{name}.{each}": getattr(module, each).clone()
            for name, module in strategy.model.named_modules()
            for each in _STATISTICS
            if not module.training and getattr(module, each, None) is not None
        }

    def before_update(self, strategy, **kwargs):
        if "mgem" in self.ours and self.ours["mgem"].restrict == "gradient":
            self._look_at_cone(strategy, {n: p.grad for n, p in strategy.model.named_parameters()})

    def after_update(self, strategy, **kwargs):
        if "mgem" in self.ours and self.ours["mgem"].restrict == "update":
            now = dict(strategy.model.named_parameters())
            step = {n: before[0] - now[n].detach() for n, before in self._before.items()}
            self._look_at_cone(strategy, step)

    def after_training_iteration(self, strategy, **kwargs):
        model = strategy.model
        for name, rows, held in [*self._held_rows(model), *self._held_parameters(model)]:
            after = _copies(dict(model.named_parameters())[name], strategy)
            self.looked["frozen" if rows is None else "rows"] += 1
            for one, other in zip(self._before[name], after, strict=False):
                differ = one != other
                if bool(differ.any() if rows is None else rows.of(differ)[held].any()):
                    self.wrong.append(f"{name} moved in {_place(strategy)}")
        for name, value in self._statistics.items():
            if not torch.equal(dict(model.named_buffers())[name], value):
                self.wrong.append(f"{name} moved in {_place(strategy)}")

    def _held_rows(self, model):
        migu = self.ours.get("migu")
        if migu is None or migu.last_mask is None:
            return
        if migu._gate.freeze == "update" or self.plain_sgd:
            for layer in resolve_gated_layers(model, migu.last_mask):
                names = {id(p): n for n, p in model.named_parameters()}
                for rows in layer.rows:
                    yield names[id(rows.parameter)], rows, ~migu.last_mask[layer.name]

    def _held_parameters(self, model):
        hybrid, migu = self.ours.get("hybrid"), self.ours.get("migu")
        decision = None if hybrid is None else hybrid.last_decision
        left_out = () if decision is None else set(decision.modules) - set(decision.trained)
        prefixes = tuple(f"{name}." for name in left_out)
        ungated = migu is not None and migu.last_mask is not None and migu._gate.ungated == "freeze"
        gated = ("head.", *(f"{n}.weight" for n in migu.last_mask)) if ungated else ()
        for name, parameter in model.named_parameters():
            is_left_out = name.startswith(prefixes)
            if is_left_out and parameter.requires_grad:
                self.wrong.append(f"{name} is not frozen")
            if is_left_out or (gated and not name.startswith(gated)) or not parameter.requires_grad:
                yield name, None, None

    def _memory_rows(self, strategy):
        """Yield {parameter: the gradient of the loss on a group of the memory}."""
        mgem, model = self.ours["mgem"], strategy.model
        if not len(mgem._bounds):
            return
        names = [n for n, p in model.named_parameters() if p.requires_grad]
        parameters = [p for p in model.parameters() if p.requires_grad]
        if any(isinstance(m, nn.Dropout) for m in model.modules()):
            named = dict(model.named_parameters())
            sizes = [named[n].numel() for n in mgem._names]
            for row in mgem._matrix.rows[: len(mgem._bounds)]:
                yield dict(zip(mgem._names, row.clone().split(sizes), strict=True))
            return
        groups = mgem.memory.closed_groups()
        if not mgem._boundaries_known:
            groups = groups + mgem.memory.open_groups()
        buffers = [(b, b.clone()) for b in model.buffers()]
        for group in groups:
            x, y, tasks = group.batch
            loss = strategy._criterion(avalanche_forward(model, x, tasks), y)
            yield dict(
                zip(names, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True)
            )
        for buffer, value in buffers:
            buffer.copy_(value)

    def _look_at_cone(self, strategy, direction):
        named = {n: p for n, p in strategy.model.named_parameters() if n in self._before}
        mgem = self.ours["mgem"]
        trained = [n for n, p in named.items() if p.requires_grad]
        partition = make_partition(strategy.model, mgem.parameter_groups)
        flat = _flat(direction, trained, named)
        for row in self._rows:
            against = _flat(row, trained, named)
            for module in partition.slices:
                at = torch.cat([torch.arange(part.start, part.stop) for part in module])
                size = float(against[at].norm() * flat[at].norm())
                self.looked["cone"] += 1
                if float(against[at] @ flat[at]) < -1e-3 * size:
                    self.wrong.append(f"outside the cone in {_place(strategy)}")


def _flat(values, names, named):
    return torch.cat(
        [
            torch.zeros(named[n].numel())
            if (value := values.get(n)) is None
            else value.detach().flatten()
            for n in names
        ]
    ).double()


def _copies(parameter, strategy):
    """A parameter and its optimiser's state, as far as that has its shape."""
    state = strategy.optimizer.state.get(parameter, {})
    same = [v for v in state.values() if torch.is_tensor(v) and v.shape == parameter.shape]
    return [each.detach().clone() for each in (parameter, *same)]


def _place(strategy):
    clock = strategy.clock
    return f"experience {clock.train_exp_counter}, iteration {clock.train_exp_iterations}"


class Copier(SupervisedPlugin):
    """Copies (model, our plugins, optimiser) once, in the midst of a step.

    Args:
        moment: the event of the copy.
        ours: our plugins by their names.
        copied: makes the copy.

    Attributes:
        iteration: in which it does so; None: in none.
        parts: the copy. A copy of this plugin has none and makes none.
    """

    def __init__(self, moment, ours, copied):
        super().__init__()
        setattr(self, moment, self._copy)
        self._ours, self._copied = ours, copied
        self.iteration = self.parts = None

    def __reduce__(self):
        return SupervisedPlugin, ()

    def _copy(self, strategy, **kwargs):
        if strategy.clock.train_iterations == self.iteration:
            self.parts = self._copied((strategy.model, self._ours, strategy.optimizer))
