"""What a training step with the gate is measured on: two networks under Avalanche's Naive."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from avalanche.benchmarks import tensors_benchmark
from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.supervised import Naive
from torch import nn

from avalanche_mgem import MIGUPlugin

_CLASSES = 10
_TOKENS = 64
_WORDS = 30_522  # of the vocabulary of BERT
# So small that the networks stay as they are: one that has learnt its few patterns by heart has
# gradients so small that AdamW computes with denormal numbers, which takes longer.
_LEARNING_RATE = 1e-6


@dataclass(frozen=True)
class Variant:
    """A plain step (freeze="") or one with the gate."""

    freeze: str = ""
    mask_fraction: float = 0.0

    @property
    def name(self) -> str:
        """What tells this variant from all others."""
        return f"{self.freeze} T={self.mask_fraction:g}" if self.freeze else "plain"

    def plugins(self) -> list[SupervisedPlugin]:
        """Return what the strategy gets."""
        if not self.freeze:
            return []
        return [MIGUPlugin(self.mask_fraction, freeze=self.freeze)]


class _Encoder(nn.Module):
    """A BERT with 12 attention heads, which takes the ids of tokens."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        from transformers import BertConfig, BertForSequenceClassification

        config = BertConfig(
            vocab_size=_WORDS,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=12,
            intermediate_size=4 * width,
            num_labels=_CLASSES,
        )
        self.model = BertForSequenceClassification(config)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=tokens).logits


def _encoder(examples: int) -> tuple[nn.Module, torch.Tensor]:
    """As large as all-MiniLM-L6-v2."""
    return _Encoder(384, 6), torch.randint(_WORDS, (examples, _TOKENS))


def _base(examples: int) -> tuple[nn.Module, torch.Tensor]:
    """As large as bert-base."""
    return _Encoder(768, 12), torch.randint(_WORDS, (examples, 2 * _TOKENS))


def _mlp(examples: int) -> tuple[nn.Module, torch.Tensor]:
    layers = [nn.Linear(784, 1000), nn.ReLU(), nn.Linear(1000, 1000), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(1000, _CLASSES)), torch.rand(examples, 784)


# name -> (its maker, patterns of a minibatch)
MODELS = {"mlp": (_mlp, 32), "encoder": (_encoder, 16)}
# Too large for one thread.
LARGE_MODELS = {"bert-base": (_base, 32)}


@dataclass
class _Clock(SupervisedPlugin):
    """Takes the seconds of each iteration: forward, backward and the optimiser's step.

    They are those of the CPU, not of the clock on the wall: other processes disturb them less.
    """

    seconds: list[float] = field(default_factory=list)
    _start: float = 0.0

    def __post_init__(self) -> None:
        super().__init__()

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Start."""
        self._start = time.process_time()

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Stop."""
        self.seconds.append(time.process_time() - self._start)


class Training:
    """A network that trains a few iterations at a time, always on the same patterns.

    The first time is a first task, which the gate leaves free; so AdamW has moments of all rows.

    Args:
        model: a name of MODELS or LARGE_MODELS.
        variant: plain, or one with the gate.
        iterations: of each time.
        watch: plugins that stand before all others.
        kind: the strategy's class, or what makes one.
        device: where it trains.
    """

    def __init__(
        self,
        model: str,
        variant: Variant,
        iterations: int,
        *,
        watch: Sequence[SupervisedPlugin] = (),
        kind: Callable[..., Naive] = Naive,
        device: torch.device | str = "cpu",
    ) -> None:
        make, batch_size = (MODELS | LARGE_MODELS)[model]
        torch.manual_seed(0)
        network, x = make(iterations * batch_size)
        data = [(x, torch.arange(len(x)) % _CLASSES)]
        stream = tensors_benchmark(train_tensors=data, test_tensors=data, task_labels=[0])
        self._experience = stream.train_stream[0]
        self._clock = _Clock()
        self.parameters = sum(parameter.numel() for parameter in network.parameters())
        self._strategy = kind(
            model=network,
            optimizer=torch.optim.AdamW(network.parameters(), lr=_LEARNING_RATE),
            criterion=nn.CrossEntropyLoss(),
            train_mb_size=batch_size,
            # The clock is first: it starts before the gate's work and stops after it.
            plugins=[*watch, self._clock, *variant.plugins()],
            evaluator=None,
            device=device,
        )

    def seconds(self) -> float:
        """Train, and return the mean seconds of an iteration."""
        self._clock.seconds = []
        self._strategy.train(self._experience)
        return sum(self._clock.seconds) / len(self._clock.seconds)
