"""Continual learning with low-rank adapters (LoRA) of peft, as plugins to any strategy.

`LoRAPlugin`: one adapter for the whole stream. `IncLoRAPlugin`: a new one for each task.
`OLoRAPlugin`: a new one for each task, orthogonal to those before it.

The adapters are layers in `strategy.model`, whose class and forward stay what they were. After
training, peft's own functions on a layer, such as `merge`, may be used; a model whose adapters are
merged into its weights cannot be trained on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor

from avalanche_mgem.arguments import finite, one_of, positive_int
from avalanche_mgem.bridge.boundaries import task_boundary
from avalanche_mgem.bridge.optimizers import require_optimizer
from avalanche_mgem.bridge.strategy import Strategy
from avalanche_mgem.huggingface.adapters import (
    Adapter,
    adapter_names,
    add_adapter,
    freeze_heads,
    give_to,
    require_own,
)
from avalanche_mgem.huggingface.beside import refuse_beside_adapters
from avalanche_mgem.huggingface.loading import require
from avalanche_mgem.huggingface.orthogonality import Penalty, adapter_norms, orthogonality_penalty
from avalanche_mgem.huggingface.undoing import all_or_nothing
from avalanche_mgem.huggingface.unused import require_gradients
from avalanche_mgem.model.heads import Heads
from avalanche_mgem.model.targets import TargetModules


class LoRAPlugin(SupervisedPlugin):
    """Train a low-rank adapter and the output heads, and nothing else of the model.

    A layer's output xW' + b becomes xW' + b + (alpha / rank) xA'B', A [rank, in] and B [out, rank].
    Runs on `before_train_dataset_adaptation` of the first experience, before Avalanche adds
    parameters to the optimiser: puts the adapter into `strategy.model` in place, freezes all else
    but output heads, and has the optimiser forget what is frozen. What the model gets later, such
    as the heads of new tasks, trains. A model that has this plugin's adapter already, from an
    earlier run or as a copy, keeps it. Where an error ends that, model and optimiser are as they
    were. Frozen parameters do not move by a bit under any optimiser of torch; running statistics of
    batch norm do, as they are no parameters. Source: "LoRA: Low-Rank Adaptation of Large Language
    Models" (arXiv 2106.09685), by peft; the defaults are those of MIGU's experiments (arXiv
    2406.17245).

    On `after_backward` of the first step it looks whether each adapter has a gradient: the layers
    of some models are never called, and an adapter there has no effect. Beside MIGU (MIGUPlugin), A
    is gated by its own output and B by the combined one.

    Args:
        rank: r, of A and B.
        alpha: the adapter's output is scaled by alpha / rank.
        dropout: of the adapter's input, in [0, 1).
        target_modules: the layers that get adapters. None: what peft takes in models of this kind
            (query and value projections, mostly); where it knows no such kind, every Linear,
            Conv2d and Conv1D (gpt2's) layer whose weight is not shared and that can take one.
            "all-linear" (with a warning for those that cannot), a regular expression on whole
            names, or a list of names or their last parts, as peft's, but each of a list must match,
            and in mixtures of experts too only the layers of these names get adapters. Experts that
            are kept as one parameter are no layers. Output heads get none.
        train_heads: whether the output heads are trained. A language model's own output layer is
            not, unless `heads` names it.
        heads: the output heads, names or shell patterns; None: the usual ones, see
            `avalanche_mgem.model.layers.find_gated_layers`.
        seed: of the adapter's initial A. None: torch's current initial seed. The global random
            states are never drawn from by the plugin (dropout draws, as all dropout does).

    Raises:
        ValueError: an argument out of range, at construction; at the first experience, a strategy
            without an optimiser, a plugin of Avalanche that does not go together with frozen
            parameters or with adapters, a model without a layer that can be adapted, names that
            match none (with the nearest ones) or a layer that no adapter fits, such as a
            convolution whose groups do not divide the rank, a model that has adapters of somebody
            else; in the first step, a named target whose layers have no gradient.
        RuntimeError: no adapter has a gradient in the first step.
        ImportError: peft is not installed.
    """

    _has_new = False  # whether there is an adapter that has had no step
    _one_each_task = False

    def __init__(
        self,
        rank: int = 8,
        alpha: float = 32,
        dropout: float = 0.05,
        *,
        target_modules: TargetModules = None,
        train_heads: bool = True,
        heads: Heads = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        require("peft")
        self.adapter = Adapter(rank, alpha, dropout, target_modules, train_heads, heads)
        if seed is not None:
            positive_int("seed", seed, minimum=0)
        self._seed = torch.initial_seed() if seed is None else int(seed)

    def before_train_dataset_adaptation(self, strategy: Strategy, **kwargs: Any) -> None:
        """Put the adapter into the model where it has none yet."""
        require_optimizer(strategy, type(self).__name__)
        refuse_beside_adapters(strategy, self, one_each_task=self._one_each_task)
        known = adapter_names(strategy.model)
        require_own(strategy.model, [self._name(index) for index in range(len(known))], self)
        if not self._wants_one(strategy.experience, len(known)):
            return
        index = len(known)
        # Each adapter from a seed of its own: a resumed run draws the same, with nothing to keep.
        seed = int(np.random.SeedSequence([self._seed, index]).generate_state(1)[0])
        name, device = self._name(index), strategy.device
        with all_or_nothing(strategy.model, strategy.optimizer):
            add_adapter(strategy.model, name, self.adapter, seed=seed, device=device)
            give_to(strategy.optimizer, strategy.model)
        self._has_new = True

    def before_training_exp(self, strategy: Strategy, **kwargs: Any) -> None:
        """Freeze heads that have come since (train_heads=False)."""
        if not self.adapter.train_heads:
            freeze_heads(strategy.model, self.adapter.heads)

    def after_backward(self, strategy: Strategy, **kwargs: Any) -> None:
        """Name layers whose new adapter has no gradient."""
        if self._has_new and (names := adapter_names(strategy.model)):
            targets, penalised = self.adapter.target_modules, self._is_penalised()
            require_gradients(strategy.model, names[-1], targets, zero_is_none=penalised)
        self._has_new = False

    def _is_penalised(self) -> bool:
        """Whether the loss has a term that gives every adapter a gradient."""
        return False

    def _name(self, index: int) -> str:
        return "lora"

    def _wants_one(self, experience: Any, known: int) -> bool:
        return known == 0


class IncLoRAPlugin(LoRAPlugin):
    """Train a new low-rank adapter for each task, and the output heads (IncLoRA).

    Earlier adapters stay active and are frozen to the bit; the outputs of all add up, in training
    and at test time, where no task label is needed. They are called task0, task1 and so on, and
    their number is that of the tasks trained on: an experience that is trained on twice is two
    tasks, one whose training an error has ended and begins again is one. Runs on
    `before_train_dataset_adaptation` of every task's first experience. Everything else, and the
    arguments, as `LoRAPlugin`. Source: the baseline of "Orthogonal Subspace Learning for Language
    Model Continual Learning" (arXiv 2310.14152).

    Raises:
        ValueError: as `LoRAPlugin`; an online stream that does not tell its task boundaries; a
            plugin of Avalanche that does not go together with parameters that come with each task.
    """

    _one_each_task = True
    _unfinished: tuple[int, int] | None = None  # the experience in training, and how many adapters

    def before_train_dataset_adaptation(self, strategy: Strategy, **kwargs: Any) -> None:
        """Put an adapter into the model where a task starts."""
        super().before_train_dataset_adaptation(strategy, **kwargs)
        n_adapters = len(adapter_names(strategy.model))
        self._unfinished = (strategy.experience.current_experience, n_adapters)

    def after_training_exp(self, strategy: Strategy, **kwargs: Any) -> None:
        """Note that the experience has ended."""
        self._unfinished = None

    def _name(self, index: int) -> str:
        return f"task{index}"

    def _wants_one(self, experience: Any, known: int) -> bool:
        if known > 0 and self._unfinished == (experience.current_experience, known):
            return False
        boundary = task_boundary(experience)
        if not boundary.known:
            raise ValueError(
                f"{type(self).__name__} adds an adapter for each task and needs to be told where "
                "tasks start, by an online stream with access_task_boundaries=True, for one; "
                "LoRAPlugin has one adapter for all"
            )
        return boundary.starts or known == 0


class OLoRAPlugin(IncLoRAPlugin):
    """IncLoRA whose new adapter is held orthogonal to those of earlier tasks (O-LoRA).

    On `before_backward` the loss gets orthogonality * sum over layers and earlier adapters i of the
    absolute values of the entries of A_t A_i', so that the tasks' adapters read different subspaces
    of their inputs. With a norm_penalty it also gets norm_penalty * sum over layers of ||A_t|| +
    ||B_t||, Frobenius norms that are not squared, in the first task too: the second term of the
    authors' code, which is not in their paper. It is no weight decay, which is the gradient of the
    squares and shrinks large weights more. Source: "Orthogonal Subspace Learning for Language Model
    Continual Learning" (arXiv 2310.14152).

    Args:
        orthogonality: the weight of the penalty, >= 0; 0 is IncLoRA. The default is the authors'
            code's; the sum grows with layers, rank and tasks.
        rank, alpha, dropout, target_modules, train_heads, heads, seed: as `LoRAPlugin`.
        penalty: "absolute", as the authors' code, or "squared": the squares of the entries, as in
            their paper.
        norm_penalty: the weight of the norms, >= 0; the authors' scripts have 0, 0.1 and 0.3.

    Attributes:
        last_penalty: the sum of the last iteration, 0-dim, without its weight; None in the first
            task. `orthogonality_metrics` logs it.

    Raises:
        ValueError: as `IncLoRAPlugin`, and for orthogonality, penalty and norm_penalty.
    """

    norm_penalty = 0.0  # of plugins in checkpoints of older versions

    def __init__(
        self,
        orthogonality: float = 0.5,
        rank: int = 8,
        alpha: float = 32,
        dropout: float = 0.05,
        *,
        target_modules: TargetModules = None,
        train_heads: bool = True,
        heads: Heads = None,
        seed: int | None = None,
        penalty: Penalty = "absolute",
        norm_penalty: float = 0.0,
    ) -> None:
        super().__init__(
            rank,
            alpha,
            dropout,
            target_modules=target_modules,
            train_heads=train_heads,
            heads=heads,
            seed=seed,
        )
        self.orthogonality = finite("orthogonality", orthogonality, minimum=0)
        self.penalty = one_of("penalty", penalty, ("absolute", "squared"))
        self.norm_penalty = finite("norm_penalty", norm_penalty, minimum=0)
        self.last_penalty: Tensor | None = None

    def before_training_exp(self, strategy: Strategy, **kwargs: Any) -> None:
        """Forget the penalty of the task before."""
        super().before_training_exp(strategy, **kwargs)
        self.last_penalty = None

    def before_backward(self, strategy: Strategy, **kwargs: Any) -> None:
        """Add the penalties to the loss."""
        with torch.set_grad_enabled(self.orthogonality > 0):
            penalty = orthogonality_penalty(strategy.model, self.penalty)  # type: ignore[arg-type]
        if penalty is not None and self.orthogonality > 0:
            strategy.loss = strategy.loss + self.orthogonality * penalty
        self.last_penalty = None if penalty is None else penalty.detach()
        if self.norm_penalty > 0 and (norms := adapter_norms(strategy.model)) is not None:
            strategy.loss = strategy.loss + self.norm_penalty * norms

    def _is_penalised(self) -> bool:
        return self.norm_penalty > 0
