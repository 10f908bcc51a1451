"""Parameter groups of an optimiser that stay right while a model grows under Avalanche.

rule = partial(parameter_groups, weight_decay=0.01, head_learning_rate=1e-3)
optimizer = torch.optim.AdamW(rule(model), lr=1e-4)
strategy = Naive(model=model, optimizer=optimizer, plugins=[ParameterGroupsPlugin(rule)])
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from avalanche.training.plugins import SupervisedPlugin
from torch import nn
from torch.optim import Optimizer

from avalanche_mgem.arguments import as_list, finite, instance
from avalanche_mgem.bridge.strategy import Strategy
from avalanche_mgem.model.heads import check_heads, head_names
from avalanche_mgem.model.targets import inside

Group = dict[str, Any]
Rule = Callable[[nn.Module], list[Group]]

NO_DECAY = ("bias", "norm")


def parameter_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    learning_rate: float | None = None,
    head_learning_rate: float | None = None,
    no_decay: Sequence[str] = NO_DECAY,
    heads: str | Sequence[str] | None = None,
) -> list[Group]:
    """Return groups of the trainable parameters for an optimiser of torch.

    "body" has the weight decay, "body, no decay" has none; with a head_learning_rate the heads'
    parameters are in "head" and "head, no decay". All groups are there even while they are empty,
    so that a learning-rate scheduler knows them. What is frozen is in none.

    Args:
        model: whose parameters they are.
        weight_decay: of the groups that decay.
        learning_rate: of the body; None: the optimiser's own.
        head_learning_rate: of the heads; None: heads are as the body.
        no_decay: words that the last name of a parameter ("bias") or the class of its module
            ("LayerNorm") contains, in lower or upper case: those do not decay.
        heads: names or shell patterns of the heads; None: the usual ones.

    Raises:
        ValueError: a number out of range, or a head that is none.
    """
    instance("model", model, nn.Module, what="a torch module")
    weight_decay = finite("weight_decay", weight_decay, minimum=0)
    rates = {"body": learning_rate, "head": head_learning_rate}
    for part, name in (("body", "learning_rate"), ("head", "head_learning_rate")):
        if (rate := rates[part]) is not None:
            rates[part] = finite(name, rate, minimum=0)
    check_heads(heads)
    words = _words(no_decay)
    groups: dict[str, Group] = {}
    for part in ["body"] if head_learning_rate is None else rates:
        lr = {} if rates[part] is None else {"lr": rates[part]}
        for name, decay in ((part, weight_decay), (f"{part}, no decay", 0.0)):
            groups[name] = {"params": [], "name": name, "weight_decay": decay, **lr}
    head_modules = [] if head_learning_rate is None else _heads(model, heads)
    for name, owner, parameter in _trainable(model):
        is_head = any(inside(owner, head) for head in head_modules)
        named = f"{name.rpartition('.')[2]} {type(model.get_submodule(owner)).__name__}".lower()
        end = ", no decay" if any(word in named for word in words) else ""
        groups[f"{'head' if is_head else 'body'}{end}"]["params"].append(parameter)
    return list(groups.values())


class ParameterGroupsPlugin(SupervisedPlugin):
    """Puts every trainable parameter into the group that a rule says, as the model changes.

    Avalanche adds new parameters to the group of what is beside them in the model, and fails where
    that is in more than one; and it adds frozen parameters. So the optimiser has one group while
    Avalanche updates it, and those of the rule from before_training_exp on. What was in the
    optimiser and stays keeps its state (momentum, step counts); what is frozen is taken out, and
    begins anew when it is trained again. A group that is there keeps its options, a scheduler's
    learning rate among them. Put this plugin before others that look at the optimiser.

    rule: returns the groups of a model, each with its "params", a "name" of its own, and options;
    such as `partial(parameter_groups, weight_decay=0.01)`.
    """

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        if not callable(rule):
            raise ValueError(
                "rule must be a function of the model that returns groups, such as "
                f"partial(parameter_groups, weight_decay=0.01), got {rule!r}"
            )
        self.rule = rule
        self._groups: list[Group] | None = None

    def after_train_dataset_adaptation(self, strategy: Strategy, **kwargs: Any) -> None:
        """Join the groups: the model is about to grow, and Avalanche to update the optimiser."""
        optimizer: Optimizer = strategy.optimizer
        if self._groups is not None:  # what followed the last time failed
            optimizer.param_groups = self._groups
        self._groups = optimizer.param_groups
        joined = {**self._groups[0], "params": [p for g in self._groups for p in g["params"]]}
        optimizer.param_groups = [joined]

    def before_training_exp(self, strategy: Strategy, **kwargs: Any) -> None:
        """Put the parameters where the rule says."""
        if self._groups is not None:
            strategy.optimizer.param_groups, self._groups = self._groups, None
        regroup(strategy.optimizer, self.rule(strategy.model))


def regroup(optimizer: Optimizer, groups: list[Group]) -> None:
    """Give an optimiser these groups of parameters, and forget the state of all others.

    Of the optimiser's groups those with the name of one of `groups` keep their options; others are
    made anew, with the optimiser's defaults for what is not said.

    Raises:
        ValueError: groups without a name, or two of one name.
    """
    names = [group.get("name") for group in groups]
    if None in names or len(set(names)) < len(names):
        raise ValueError(f"each group of a rule needs a name of its own, got {names}")
    known = {group.get("name"): group for group in optimizer.param_groups}
    optimizer.param_groups = []
    for group in groups:
        if group["name"] in known:
            known[group["name"]]["params"] = list(group["params"])
            optimizer.param_groups.append(known[group["name"]])
        else:
            optimizer.add_param_group(group)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for parameter in [p for p in optimizer.state if id(p) not in held]:
        del optimizer.state[parameter]


def _trainable(model: nn.Module) -> Iterator[tuple[str, str, nn.Parameter]]:
    """Name, module's name and parameter of all that is trained."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name, name.rpartition(".")[0], parameter


def _heads(model: nn.Module, heads: str | Sequence[str] | None) -> list[str]:
    owners = {owner: model.get_submodule(owner) for _, owner, p in _trainable(model) if p.ndim > 1}
    return head_names(model, owners, heads)


def _words(no_decay: Sequence[str]) -> list[str]:
    words = as_list("no_decay", no_decay, str, what="a list of words")
    if not all(words):
        raise ValueError(f"no_decay must be a list of words, got {no_decay!r}")
    return [word.lower() for word in words]
