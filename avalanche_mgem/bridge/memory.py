"""Episodic memory: a few samples of every past task, split into the groups that give a row each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import default_collate

from avalanche_mgem.arguments import one_of, positive_int, torch_device
from avalanche_mgem.bridge.fields import Batch, own_storage, to_device
from avalanche_mgem.model.distributed import first_of_all
from avalanche_mgem.model.randomness import preserved_random_state

Split = Literal["random", "class"]
Selection = Literal["random", "class-balanced", "ring"]
Sample = Any


@dataclass(eq=False)
class MemoryGroup:
    """The samples behind one memory row.

    Args:
        batch: as the data set's collate function made it, on the memory's device; it may come to
            share its storage with other groups, of which a copy or a pickle keeps its own part.
        share: of its task's groups: 1 / number of groups of the task.
        size: number of samples.
    """

    batch: Batch
    share: float
    size: int

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "batch": own_storage(self.batch)}


class EpisodicMemory:
    """Samples of past tasks, taken from their data sets and kept as ready-made batches.

    Samples are read through the data set's "eval" transformations, so augmentation is never stored,
    with all their fields: task labels, and whatever else the data set gives.

    Args:
        patterns_per_experience: samples kept of each task; all of them where a task has fewer.
            Where a stream has no task boundaries, the size of the one reservoir.
        groups: k, the number of groups each task's samples are split into; fewer where a task has
            fewer samples (or classes) than that.
        split: "random": disjoint groups whose sizes differ by at most one. "class": the classes of
            a task, in sorted order, are dealt into the groups.
        selection: "random": a uniform sample of the task (Avalanche's GEMPlugin). "class-balanced":
            as equal a number of each class as the task allows. "ring": GEM's ring buffer, filled
            while training, which holds the last samples of a pass over the task's data. The pass
            keeps in step with training and goes through the data set in an order of its own: which
            samples a minibatch holds, and which of them are replayed or augmented, no plugin can
            tell.
        device: where the batches are kept; None: where the data set's collate function leaves them.
        held_out: keep as many further samples of each task, disjoint from the memory, to measure
            with; they change nothing about what the memory holds. Not for the ring.
        seed: of the selection and the split.

    Raises:
        ValueError: an argument out of range, or more groups than patterns.
    """

    def __init__(
        self,
        patterns_per_experience: int,
        *,
        groups: int = 1,
        split: Split = "random",
        selection: Selection = "random",
        device: torch.device | str | None = None,
        held_out: bool = False,
        seed: int | np.random.SeedSequence = 0,
    ) -> None:
        self.patterns_per_experience = positive_int(
            "patterns_per_experience", patterns_per_experience
        )
        self.groups = positive_int("memory_groups", groups)
        if self.groups > self.patterns_per_experience:
            raise ValueError(
                f"memory_groups={groups} needs at least {groups} patterns per experience, "
                f"got patterns_per_experience={patterns_per_experience}"
            )
        self.split = one_of("memory_split", split, ("random", "class"))
        self.selection = one_of("memory_selection", selection, ("random", "class-balanced", "ring"))
        self.device = None if device is None else torch_device("memory_device", device)
        if held_out and self.selection == "ring":
            raise ValueError("held_out needs memory_selection 'random' or 'class-balanced'")
        self._random = np.random.default_rng(seed)
        self._tasks: list[list[MemoryGroup]] = []
        self._with_held_out = held_out
        self._held_out: list[MemoryGroup | None] = []
        self._open = _Pool()
        self._open_groups: list[MemoryGroup] | None = None
        self._pass: list[tuple[Any, int]] = []

    def __len__(self) -> int:
        """Return the number of tasks whose memory is closed."""
        return len(self._tasks)

    def agree(self) -> None:
        """Choose by the first process's random numbers from here on; of all processes."""
        self._random = first_of_all(self._random)

    def most_groups(self, classes: int) -> int:
        """Return into how many groups a task of so many classes is split at most; 0: not known."""
        return min(self.groups, classes or self.groups) if self.split == "class" else self.groups

    def observe_dataset(self, dataset: Any) -> None:
        """Take samples of the open task from `dataset`, all of it or a part of it at a time."""
        if self.selection == "ring" or len(dataset) == 0:
            return
        with preserved_random_state():
            self._open.merge(
                dataset,
                self._random.random(len(dataset)),
                self.patterns_per_experience * (2 if self._with_held_out else 1),
                balanced=self._balanced,
                with_labels=self._balanced or self.split == "class",
            )
        self._open_groups = None

    def start_pass(self, dataset: Any) -> None:
        """Begin a pass of the ring over `dataset`; nothing for the other selections."""
        if self.selection == "ring":
            order = self._random.permutation(len(dataset)).tolist()
            self._pass = [(dataset, int(index)) for index in order]

    def advance(self, n_samples: int) -> None:
        """Put the pass's next samples into the ring; nothing for the other selections."""
        if self.selection == "ring" and self._pass:
            shown, self._pass = self._pass[:n_samples], self._pass[n_samples:]
            self._open.append(shown, self.patterns_per_experience)
            self._open_groups = None

    def close_task(self) -> None:
        """End the open task: its samples become a memory that constrains what comes after."""
        if len(self._open):
            self._tasks.append(self.open_groups())
            self._held_out.append(self._held_out_group())
        self._open, self._open_groups, self._pass = _Pool(), None, []

    def closed_groups(self) -> list[MemoryGroup]:
        """The groups of all closed tasks, in the order of the tasks."""
        return [group for task in self._tasks for group in task]

    def closed_tasks(self) -> list[list[MemoryGroup]]:
        """The groups of each closed task."""
        return [list(groups) for groups in self._tasks]

    def held_out_groups(self) -> list[MemoryGroup | None]:
        """What is held out of each closed task; None where it has no sample to spare."""
        return list(self._held_out)

    def open_groups(self) -> list[MemoryGroup]:
        """The groups of the open task, as far as it has been observed."""
        if self._open_groups is None:
            with preserved_random_state():
                self._open_groups = self._groups_of(self._split_positions())
        return self._open_groups

    def _groups_of(self, parts: list[NDArray[np.int64]]) -> list[MemoryGroup]:
        batches = [to_device(batch, self.device) for batch in self._open.collate(parts)]
        sized = zip(batches, parts, strict=True)
        return [MemoryGroup(batch, 1.0 / len(parts), len(part)) for batch, part in sized]

    def _held_out_group(self) -> MemoryGroup | None:
        memory = self._open.best(self.patterns_per_experience, self._balanced)
        rest = np.setdiff1d(np.arange(len(self._open)), memory)
        if not (self._with_held_out and len(rest)):
            return None
        with preserved_random_state():
            return self._groups_of([rest])[0]

    @property
    def _balanced(self) -> bool:
        return self.selection == "class-balanced"

    def _split_positions(self) -> list[NDArray[np.int64]]:
        memory = self._open.best(self.patterns_per_experience, self._balanced)
        if len(memory) == 0:
            return []
        if self.split == "class":
            labels = np.array(self._open.labels())[memory]
            classes = np.unique(labels)
            dealt = [classes[start :: self.groups] for start in range(self.groups)]
            return [memory[np.isin(labels, part)] for part in dealt if len(part)]
        order = memory[self._random.permutation(len(memory))]
        return [np.sort(part) for part in np.array_split(order, min(self.groups, len(memory)))]


class _Pool:
    """The samples kept of the open task.

    Of a random selection each has the key that it won its place by; of a ring, the data set and the
    position where it is read when it is needed.
    """

    def __init__(self) -> None:
        self._samples: list[Sample] = []
        self._keys = np.empty(0)
        self._labels = np.empty(0, dtype=np.int64)
        self._ring: dict[tuple[int, int], Any] = {}
        self._collate: Callable[[list[Sample]], Batch] = default_collate

    def __len__(self) -> int:
        return len(self._samples) or len(self._ring)

    def collate(self, parts: list[NDArray[np.int64]]) -> list[Batch]:
        samples = self._samples or [_raw(dataset)[i] for dataset, i in self._ring.values()]
        return [self._collate([samples[i] for i in part]) for part in parts]

    def labels(self) -> list[int]:
        if not self._ring:
            return [int(label) for label in self._labels]
        labels = {id(dataset): _labels(dataset) for dataset, _ in self._ring.values()}
        return [int(labels[id(dataset)][index]) for dataset, index in self._ring.values()]

    def append(self, shown: list[tuple[Any, int]], size: int) -> None:
        """Keep the last `size` of the samples shown, each once."""
        for dataset, index in shown:
            place = (id(dataset), index)
            self._ring.pop(place, None)
            self._ring[place] = (dataset, index)
        for place in list(self._ring)[:-size]:
            del self._ring[place]
        if shown:
            self._collate = _collate_of(shown[-1][0])

    def best(self, size: int, balanced: bool) -> NDArray[np.int64]:
        """Positions of the `size` samples that a memory of that size would have kept, sorted."""
        if self._ring:
            return np.arange(len(self._ring))
        return _largest(self._keys, self._labels if balanced else 0 * self._labels, size)

    def merge(
        self,
        dataset: Any,
        keys: NDArray[np.float64],
        size: int,
        *,
        balanced: bool,
        with_labels: bool,
    ) -> None:
        """Keep the `size` samples with the largest keys, of what is here and of `dataset`.

        Keys are independent and uniform, so what is kept is a uniform sample of all that was ever
        merged; with `balanced`, of each class.
        """
        new_labels = _labels(dataset) if with_labels else np.zeros(len(dataset), dtype=np.int64)
        all_keys = np.concatenate([self._keys, keys])
        all_labels = np.concatenate([self._labels, new_labels])
        kept = _largest(all_keys, all_labels if balanced else np.zeros_like(all_labels), size)
        raw = _raw(dataset)
        here = len(self._samples)
        self._samples = [self._samples[i] if i < here else raw[int(i) - here] for i in kept]
        self._keys, self._labels = all_keys[kept], all_labels[kept]
        self._collate = _collate_of(dataset)


def _raw(dataset: Any) -> Any:
    """The data set without augmentation, where it tells what that is."""
    return dataset.eval() if hasattr(dataset, "eval") else dataset


def _collate_of(dataset: Any) -> Callable[[list[Sample]], Batch]:
    return getattr(dataset, "collate_fn", None) or default_collate


def _largest(keys: NDArray[np.float64], labels: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Positions of the largest keys, sorted; as equal a number for each label as there can be."""
    order = np.argsort(-keys, kind="stable")
    rank_in_class = np.empty(len(keys), dtype=np.int64)
    seen: dict[int, int] = defaultdict(int)
    for position in order:
        label = int(labels[position])
        rank_in_class[position] = seen[label]
        seen[label] += 1
    # First every class's best, then every class's second best: equal shares, whatever classes hold.
    return np.sort(np.lexsort((-keys, rank_in_class))[:size])


def _labels(dataset: Any) -> NDArray[np.int64]:
    targets = getattr(dataset, "targets", None)
    if targets is None:
        raise ValueError(
            "memory_split='class' and memory_selection='class-balanced' need a data set with "
            "`targets`, as Avalanche's classification data sets have"
        )
    return np.fromiter((int(target) for target in targets), dtype=np.int64, count=len(dataset))
