"""What a training step with the gate is measured on: networks under Avalanche's Naive."""

from __future__ import annotations

import itertools
import time
from collections import Counter
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
    """A BERT with 12 attention heads, which takes the ids of tokens; lora: with rank 8."""

    def __init__(self, width: int, layers: int, *, words: int = _WORDS, lora: bool = False) -> None:
        super().__init__()
        from transformers import BertConfig, BertForSequenceClassification

        config = BertConfig(
            vocab_size=words,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=12,
            intermediate_size=4 * width,
            num_labels=_CLASSES,
        )
        self.model = BertForSequenceClassification(config)
        if lora:
            from peft import LoraConfig, TaskType, get_peft_model

            every = ["query", "key", "value", "dense"]
            adapters = LoraConfig(TaskType.SEQ_CLS, r=8, lora_alpha=32, target_modules=every)
            self.model = get_peft_model(self.model, adapters)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=tokens).logits


def _encoder(examples: int) -> tuple[nn.Module, torch.Tensor]:
    """As large as all-MiniLM-L6-v2."""
    return _Encoder(384, 6), torch.randint(_WORDS, (examples, _TOKENS))


def _few_words(examples: int) -> tuple[nn.Module, torch.Tensor]:
    """The same with a vocabulary of 1,000."""
    return _Encoder(384, 6, words=1000), torch.randint(1000, (examples, _TOKENS))


def _lora(examples: int) -> tuple[nn.Module, torch.Tensor]:
    """The same with LoRA on all of its layers."""
    return _Encoder(384, 6, lora=True), torch.randint(_WORDS, (examples, _TOKENS))


def _wide(examples: int) -> tuple[nn.Module, torch.Tensor]:
    """Three layers of the width of bert-base."""
    return _Encoder(768, 3), torch.randint(_WORDS, (examples, 2 * _TOKENS))


def _conv(examples: int) -> tuple[nn.Module, torch.Tensor]:
    """Five convolutions on images of 32 x 32."""
    channels, layers = [3, 32, 64, 64, 128, 128], []
    for number, (before, after) in enumerate(itertools.pairwise(channels)):
        stride = 1 if number % 2 == 0 else 2
        layers.append(nn.Conv2d(before, after, 3, stride, padding=1, bias=False))
        layers += [nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    network = nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, _CLASSES)
    )
    return network, torch.rand(examples, 3, 32, 32)


def _base(examples: int) -> tuple[nn.Module, torch.Tensor]:
    """As large as bert-base."""
    return _Encoder(768, 12), torch.randint(_WORDS, (examples, 2 * _TOKENS))


def _mlp(examples: int) -> tuple[nn.Module, torch.Tensor]:
    layers = [nn.Linear(784, 1000), nn.ReLU(), nn.Linear(1000, 1000), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(1000, _CLASSES)), torch.rand(examples, 784)


# name -> (its maker, patterns of a minibatch)
MODELS = {
    "mlp": (_mlp, 32),
    "conv": (_conv, 32),
    "lora": (_lora, 16),
    "encoder": (_encoder, 16),
    "encoder-1000": (_few_words, 16),
    "wide": (_wide, 8),
}
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
        iterations: of each time that are timed; one more goes before them, with what is done once
            an experience.
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
        network, x = make((iterations + 1) * batch_size)
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
        """Train, and return the mean seconds of an iteration but the first."""
        self._clock.seconds = []
        self._strategy.train(self._experience)
        timed = self._clock.seconds[1:]
        return sum(timed) / len(timed)

    @property
    def paths(self) -> Counter[str]:
        """How many layers' gradients the last step made in which way (`last_path`)."""
        found = (getattr(plugin, "last_path", None) for plugin in self._strategy.plugins)
        return Counter(path for paths in found if paths for path in paths.values())
