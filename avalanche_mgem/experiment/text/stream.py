"""A stream of text tasks by the names of its tasks and its tokenizer: known by what they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

from avalanche_mgem.arguments import as_path, bounded_int, flag, one_of, positive_int
from avalanche_mgem.experiment.digests import tokenizer_digest
from avalanche_mgem.files import file_digest
from avalanche_mgem.huggingface.loading import checked_name, load_tokenizer, require_folder
from avalanche_mgem.streams.text.files import text_task_files
from avalanche_mgem.streams.text.forms import FORMS, Form
from avalanche_mgem.streams.text.hub import HUB_TASKS
from avalanche_mgem.streams.text.tasks import TEXT_ORDERS, chosen_tasks

_LATER = {"form": "classification", "shared_labels": False}  # told where they are something else


@dataclass(frozen=True)
class TextStream:
    """A stream of text tasks, made when it is called with a seed; see `text_stream`.

    Args:
        tasks: an order of MIGU's paper ("1" to "6"), or the names of tasks.
        tokenizer: a name on the hub or a local folder, as for `load_tokenizer`.
        folder: where the tasks lie; None: they are read from the hub.
        form: "classification", or what models are asked that answer in words: "text-to-text" or
            "causal".
        max_length: of a text, in tokens.
        train_per_experience, test_per_experience: at most so many samples of a task; None: all.
        task_labels, shared_labels: see `text_stream`.
        cache_folder: where tokens are kept; None: in memory.

    Raises:
        ValueError: an unknown order or form, a task named twice or unknown on the hub.
    """

    tasks: str | tuple[str, ...]
    tokenizer: str
    folder: str | None = None
    form: Form = "classification"
    max_length: int = 128
    train_per_experience: int | None = None
    test_per_experience: int | None = None
    task_labels: bool = True
    shared_labels: bool = False
    cache_folder: str | None = None

    def __post_init__(self) -> None:
        one_of("form", self.form, FORMS)
        object.__setattr__(self, "max_length", bounded_int("max_length", self.max_length))
        for name in ("train_per_experience", "test_per_experience"):
            if (size := getattr(self, name)) is not None:
                object.__setattr__(self, name, positive_int(name, size))
        for name in ("task_labels", "shared_labels"):
            object.__setattr__(self, name, flag(name, getattr(self, name)))
        tasks: str | int | Sequence[str] = self.tasks
        is_order = isinstance(tasks, str | Integral) and not isinstance(tasks, bool)
        if not (is_order and str(tasks) in TEXT_ORDERS):
            names = tuple(str(task) for task in chosen_tasks(tasks))
            object.__setattr__(self, "tasks", names)
        else:
            object.__setattr__(self, "tasks", str(tasks))
        if self.folder is None:
            for task in chosen_tasks(self.tasks):
                one_of("tasks", task, HUB_TASKS)
        object.__setattr__(self, "tokenizer", checked_name("tokenizer", self.tokenizer))
        for name in ("folder", "cache_folder"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, str(as_path(name, value)))

    @property
    def name(self) -> str:
        """Name for people: "text-1" is an order, "text:agnews,yahoo" are tasks."""
        return (
            f"text-{self.tasks}" if isinstance(self.tasks, str) else f"text:{','.join(self.tasks)}"
        )

    @property
    def packages(self) -> tuple[str, ...]:
        """Installed packages whose versions decide the samples."""
        return ("transformers",) if self.folder else ("transformers", "datasets")

    def __call__(self, seed: int) -> Any:
        """Return the scenario of this seed."""
        from avalanche_mgem.streams.text.stream import text_stream

        return text_stream(
            self.tasks,
            tokenizer=load_tokenizer(self.tokenizer),
            folder=self.folder,
            max_length=self.max_length,
            train_per_task=self.train_per_experience,
            test_per_task=self.test_per_experience,
            seed=seed,
            task_labels=self.task_labels,
            shared_labels=self.shared_labels,
            cache_folder=self.cache_folder,
            form=self.form,
        )

    def check(self) -> int:
        """Return the number of tasks.

        Raises:
            ValueError: files or a folder that are not there.
        """
        names = [str(task) for task in chosen_tasks(self.tasks)]
        if self.folder is not None:
            for name in names:
                text_task_files(self.folder, name)
        require_folder("tokenizer", self.tokenizer)
        return len(names)

    def description(self) -> dict[str, Any]:
        """Return what decides the samples, as JSON values; of files, their contents."""
        arguments = {
            "max_length": self.max_length,
            "train_per_experience": self.train_per_experience,
            "test_per_experience": self.test_per_experience,
            "task_labels": self.task_labels,
            **{k: getattr(self, k) for k, v in _LATER.items() if getattr(self, k) != v},
        }
        tokenizer = described_by_name(self.tokenizer, tokenizer_digest)
        described = {"type": "TextStream", "name": self.name, "arguments": arguments}
        if self.folder is None:
            return {**described, "tokenizer": tokenizer}
        return {**described, "tokenizer": tokenizer, "sha256": self._digests(self.folder)}

    def _digests(self, folder: str) -> list[str]:
        names = [str(task) for task in chosen_tasks(self.tasks)]
        return [file_digest(path) for name in names for path in text_task_files(folder, name)]


def described_by_name(name: str, digest: Any) -> dict[str, str]:
    """Return what is known of a model or tokenizer: its name, and of a local folder a digest."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return {"name": name}
    return {"name": folder.resolve().name, "sha256": digest(folder)}
