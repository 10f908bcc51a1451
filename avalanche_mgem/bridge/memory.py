"""Episodic memory: a few samples of every past task, split into the groups that give a row each."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray

from avalanche_mgem.arguments import one_of, positive_int, torch_device
from avalanche_mgem.bridge.classes import class_targets
from avalanche_mgem.bridge.collation import Collate, Transform, collate_of
from avalanche_mgem.bridge.fields import (
    Batch,
    MemoryFormat,
    OneByOne,
    in_format,
    own_storage,
    plain,
    to_device,
)
from avalanche_mgem.bridge.pool import Pool
from avalanche_mgem.model.distributed import first_of_all
from avalanche_mgem.model.randomness import RandomStream, preserved_random_state

Split = Literal["random", "class"]
Selection = Literal["random", "class-balanced", "ring"]


@dataclass(eq=False)
class MemoryGroup:
    """The samples behind one memory row.

    Args:
        batch: as training's collate function made it, on the memory's device; it may come to
            share its storage with other groups, of which a copy or a pickle keeps its own part.
        share: of its task's samples: size / their number.
        size: number of samples.
    """

    batch: Batch
    share: float
    size: int

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "batch": own_storage(self.batch)}

    def state(self) -> dict[str, Any]:
        """Return the group in Python's own types and tensors; see `plain`."""
        one_by_one = isinstance(self.batch, OneByOne)
        return {**vars(self), "batch": plain(self.batch), "one_by_one": one_by_one}

    @classmethod
    def of(cls, state: dict[str, Any]) -> MemoryGroup:
        """Return the group of a `state`."""
        batch = OneByOne(state["batch"]) if state["one_by_one"] else state["batch"]
        return cls(batch, state["share"], state["size"])


class EpisodicMemory:
    """Samples of past tasks, taken from their data sets and kept as ready-made batches.

    Samples are kept with all their fields: task labels, and whatever else the data set gives. Where
    those of a group make no batch together, because they differ in size, they go one by one.

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
        transform: the transformations of the data set that samples are read through: "eval", so
            that no augmentation is stored, or "train", of which one outcome is kept for each
            sample (with "ring", of each reading), drawn from the memory's own random numbers.
        device: where the batches are kept; None: where the collate function leaves them.
        memory_format: the layout of batches of images: "preserve" or "channels_last".
        held_out: keep as many further samples of each task, disjoint from the memory, to measure
            with; they change nothing about what the memory holds. Not for the ring.
        seed: of the selection, the split and augmentation.

    Raises:
        ValueError: an argument out of range, or more groups than patterns.
    """

    memory_format: MemoryFormat = "preserve"  # of checkpoints that are older

    def __init__(
        self,
        patterns_per_experience: int,
        *,
        groups: int = 1,
        split: Split = "random",
        selection: Selection = "random",
        transform: Transform = "eval",
        device: torch.device | str | None = None,
        memory_format: MemoryFormat = "preserve",
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
        self.transform = cast(Transform, one_of("memory_transform", transform, ("eval", "train")))
        self.device = None if device is None else torch_device("memory_device", device)
        self.memory_format = cast(
            MemoryFormat, one_of("memory_format", memory_format, ("preserve", "channels_last"))
        )
        if held_out and self.selection == "ring":
            raise ValueError("held_out needs memory_selection 'random' or 'class-balanced'")
        sequence = np.random.SeedSequence(seed) if isinstance(seed, int) else seed
        self._random = np.random.default_rng(sequence)
        self._augmentation = RandomStream(int(sequence.spawn(1)[0].generate_state(1)[0]))
        self._tasks: list[list[MemoryGroup]] = []
        self._with_held_out = held_out
        self._held_out: list[MemoryGroup | None] = []
        self._open = Pool(self.transform)
        self._open_groups: list[MemoryGroup] | None = None
        self._pass: list[tuple[Any, int]] = []
        self._pass_collate: Collate | None = None

    def __len__(self) -> int:
        """Return the number of tasks whose memory is closed."""
        return len(self._tasks)

    def agree(self) -> None:
        """Choose by the first process's random numbers from here on; of all processes."""
        self._random = first_of_all(self._random)
        self._augmentation = first_of_all(self._augmentation)

    def most_groups(self, classes: int) -> int:
        """Return into how many groups a task of so many classes is split at most; 0: not known."""
        return min(self.groups, classes or self.groups) if self.split == "class" else self.groups

    @property
    def needs_classes(self) -> bool:
        """Whether samples must have a class."""
        return self._balanced or self.split == "class"

    @property
    def largest_group(self) -> int:
        """How many samples a group can have."""
        if self.split == "class":  # one class may have all samples
            return self.patterns_per_experience
        return -(-self.patterns_per_experience // self.groups)

    def observe_dataset(self, dataset: Any, collate: Collate | None = None) -> None:
        """Take samples of the open task from `dataset`, all of it or a part of it at a time.

        collate: makes batches of them; None: the data set's own function, or torch's.
        """
        if self.selection == "ring" or len(dataset) == 0:
            return
        size = len(dataset)
        with self._reading():
            self._open.merge(
                dataset,
                self._random.random(size),
                self.patterns_per_experience * (2 if self._with_held_out else 1),
                collate=collate or collate_of(None, dataset),
                balanced=self._balanced,
                labels=class_targets(dataset) if self.needs_classes else np.zeros(size, np.int64),
            )
        self._open_groups = None

    def start_pass(self, dataset: Any, collate: Collate | None = None) -> None:
        """Begin a pass of the ring over `dataset`; nothing for the other selections.

        collate: as that of `observe_dataset`.
        """
        if self.selection == "ring":
            order = self._random.permutation(len(dataset)).tolist()
            self._pass = [(dataset, int(index)) for index in order]
            self._pass_collate = collate or collate_of(None, dataset)

    def advance(self, n_samples: int) -> None:
        """Put the pass's next samples into the ring; nothing for the other selections."""
        if self._pass and self._pass_collate is not None:
            shown, self._pass = self._pass[:n_samples], self._pass[n_samples:]
            self._open.append(shown, self.patterns_per_experience, self._pass_collate)
            self._open_groups = None

    def close_task(self) -> None:
        """End the open task: its samples become a memory that constrains what comes after."""
        if len(self._open):
            self._tasks.append(self.open_groups())
            self._held_out.append(self._held_out_group())
        self._open, self._open_groups = Pool(self.transform), None
        self._pass, self._pass_collate = [], None

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
            with self._reading():
                self._open_groups = self._groups_of(self._split_positions())
        return self._open_groups

    def state(self) -> dict[str, Any]:
        """Return the closed tasks and the random states, of Python's own types and tensors.

        Raises:
            ValueError: a batch has a field of another type.
        """
        groups = [[group.state() for group in task] for task in self._tasks]
        return {
            "tasks": groups,
            "random": self._random.bit_generator.state,
            "augmentation": self._augmentation.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take the tasks and the random states of a `state`; forget a task that is open."""
        self._tasks = [[MemoryGroup.of(group) for group in task] for task in state["tasks"]]
        self._held_out = [None] * len(self._tasks)
        self._random.bit_generator.state = state["random"]
        self._augmentation.restore(state["augmentation"])
        self._open, self._open_groups = Pool(self.transform), None

    def _groups_of(self, parts: list[NDArray[np.int64]]) -> list[MemoryGroup]:
        moved = (to_device(batch, self.device) for batch in self._open.batches(parts))
        batches = [in_format(batch, self.memory_format) for batch in moved]
        sized, total = zip(batches, parts, strict=True), sum(map(len, parts))
        return [MemoryGroup(batch, len(part) / total, len(part)) for batch, part in sized]

    def _held_out_group(self) -> MemoryGroup | None:
        memory = self._open.best(self.patterns_per_experience, self._balanced)
        rest = np.setdiff1d(np.arange(len(self._open)), memory)
        if not (self._with_held_out and len(rest)):
            return None
        with self._reading():
            return self._groups_of([rest])[0]

    def _reading(self) -> AbstractContextManager[None]:
        """Where data sets and collate functions draw from nobody else's random numbers."""
        if self.transform == "train":
            return self._augmentation.active(self.device or torch.device("cpu"))
        return preserved_random_state()

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
