"""Batches of samples of similar length, which need less padding.

Evaluation needs none of this: `text_stream` hands out test sets sorted by length. For training, a
plain DataLoader takes a `LengthBatchSampler`. Avalanche's strategies make their own loaders, and
give them nothing but `shuffle`; `LengthBuckets` is a plugin that exchanges how the loader of an
epoch, replay's as well, orders its data sets, after all plugins have had their say about it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks.utils.data_loader import MultiDatasetDataLoader, MultiDatasetSampler
from avalanche.training.plugins import SupervisedPlugin
from torch.utils.data import ConcatDataset, DataLoader, Sampler

from avalanche_mgem.arguments import flag, positive_int
from avalanche_mgem.bridge.strategy import Strategy
from avalanche_mgem.streams.text.batches import TextBatch
from avalanche_mgem.streams.text.tokens import INPUT_IDS

# Loader settings that say how a data set is ordered, which the batch sampler says here.
_ORDERING = ("batch_size", "shuffle", "sampler", "drop_last", "generator", "ffcv_args")


def lengths_of(dataset: Any) -> list[int]:
    """Return the number of tokens of each sample of a text stream's data set.

    Raises ValueError for samples of another kind.
    """
    try:
        return [len(dataset[index][0][INPUT_IDS]) for index in range(len(dataset))]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(
            "lengths are known for the data sets of text streams only, whose samples are "
            "[features, label, ...]"
        ) from error


class LengthBatchSampler(Sampler[list[int]]):
    """Batches of indices of similar length, in a new random order each time it is iterated.

    The samples are shuffled and cut into windows of so many batches; each window is sorted by
    length and cut into batches, and all batches are shuffled. So every sample comes once, and a
    window of 1 is a plain shuffle. The random numbers are its own: of the seed, and of how often it
    has been iterated before.

    lengths: of the N samples. drop_last: leave out a batch that is not full. Raises ValueError for
    a batch size or window that is no whole number >= 1.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        *,
        window: int = 50,
        drop_last: bool = False,
        seed: int | Sequence[int] = 0,
    ) -> None:
        self.batch_size = positive_int("batch_size", batch_size)
        self.drop_last = flag("drop_last", drop_last)
        self._window = positive_int("window", window) * self.batch_size
        self._lengths = _numbers("lengths", lengths)
        for number in [seed] if isinstance(seed, Integral) else _numbers("seed", seed).tolist():
            positive_int("seed", number, minimum=0)
        self._random = np.random.default_rng(seed)

    def __len__(self) -> int:
        full, rest = divmod(len(self._lengths), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[list[int]]:
        order = self._random.permutation(len(self._lengths))
        batches: list[list[int]] = []
        for start in range(0, len(order), self._window):
            window = order[start : start + self._window]
            window = window[np.argsort(self._lengths[window], kind="stable")]
            # The last window is not full: its remainder must not be its longest samples each time.
            batches += self._cut(window)
        if self.drop_last:
            batches = [batch for batch in batches if len(batch) == self.batch_size]
        return iter([batches[i] for i in self._random.permutation(len(batches))])

    def _cut(self, window: np.ndarray[Any, Any]) -> list[list[int]]:
        size = self.batch_size
        rest = len(window) % size
        # Which batch is the short one is drawn, so that no length is left out by drop_last.
        short = int(self._random.integers(len(window) // size + 1)) if rest else -1
        parts: list[list[int]] = []
        at = 0
        while at < len(window):
            step = rest if len(parts) == short else size
            parts.append(window[at : at + step].tolist())
            at += step
        return parts


def _numbers(name: str, values: object) -> np.ndarray[Any, Any]:
    is_list = isinstance(values, Sequence | np.ndarray) and not isinstance(values, str | bytes)
    array = np.asarray(values if is_list else None)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"{name} must be a list of whole numbers, got {values!r}")
    return array


class LengthBuckets(SupervisedPlugin):
    """Makes a strategy train on batches of samples of similar length.

    Runs on before_training_epoch, when the loader is decided: the samples of each of its data sets
    (the experience's, and replay's memory) are batched by length, and joined as before. Batches
    have the sizes that they had; the data set they are drawn from is the same, and so is their
    number. In one process, and for text streams only.

    window: in batches, see `LengthBatchSampler`; large is less padding, small is more random. seed:
    of the order, which takes nothing from the global random state.
    """

    def __init__(self, *, window: int = 50, seed: int = 0) -> None:
        super().__init__()
        self.window = positive_int("window", window)
        self.seed = positive_int("seed", seed, minimum=0)

    def before_training_epoch(self, strategy: Strategy, **kwargs: Any) -> None:
        """Exchange the loader, unless it is exchanged already."""
        loader = strategy.dataloader
        if isinstance(loader, _BucketedLoader):
            return
        if not isinstance(loader, MultiDatasetDataLoader):
            raise ValueError(
                f"LengthBuckets needs a loader of Avalanche's, got {type(loader).__name__}: "
                f"experiences must have task labels, as text streams give them"
            )
        experience = int(strategy.clock.train_exp_counter)
        strategy.dataloader = _BucketedLoader(loader, self.window, [self.seed, experience])


class _BucketedLoader:
    """A loader of Avalanche's whose data sets are batched by length."""

    def __init__(self, loader: Any, window: int, seed: list[int]) -> None:
        settings = loader.loader_kwargs
        self._replaced = loader
        samplers = [
            LengthBatchSampler(
                lengths_of(dataset),
                size,
                window=window,
                drop_last=bool(settings.get("drop_last", False)),
                seed=[*seed, position],
            )
            for position, (dataset, size) in enumerate(
                zip(loader.datasets, loader.batch_sizes, strict=True)
            )
        ]
        # The loader's iterators draw from this one and not from the global random state.
        generator = torch.Generator().manual_seed(int(np.random.default_rng(seed).integers(2**62)))
        self._loader: DataLoader[Any] = DataLoader(
            ConcatDataset(loader.datasets),
            batch_sampler=MultiDatasetSampler(
                loader.datasets,
                samplers,
                termination_dataset_idx=loader.termination_dataset,
                oversample_small_datasets=loader.oversample_small_datasets,
            ),
            generator=generator,
            **{name: value for name, value in settings.items() if name not in _ORDERING},
        )

    def __len__(self) -> int:
        return len(self._replaced)

    def __iter__(self) -> Iterator[TextBatch]:
        return iter(self._loader)
