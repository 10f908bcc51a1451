"""The stream, the model and the training of a comparison, from what the command line is told."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from avalanche_mgem.arguments import positive_int
from avalanche_mgem.experiment.configuration import NamedStream, Training
from avalanche_mgem.experiment.models import ModelFactory, make_model_factory
from avalanche_mgem.experiment.text.models import TextModelFactory
from avalanche_mgem.experiment.text.setup import TEXT_TRAINING, text_setup
from avalanche_mgem.experiment.text.stream import TextStream
from avalanche_mgem.streams import parse_stream_name

TEXT = "text"
_TEXT_ONLY = ("order", "tasks", "max_length", "form", "shared_labels")
_NOT_TEXT = (
    *("experiences", "class_order", "domains", "image_size", "hidden"),
    *("classes_per_experience", "shared_classes"),
)
_BY_CLASS = ("split", "correlated")  # kinds of streams that deal out the classes


@dataclass(frozen=True, kw_only=True)
class Options:
    """What says which stream and which model; None and False: not given. Names are the options'.

    Raises:
        ValueError: an option that this stream does not have.
    """

    stream: str
    experiences: int | None = None
    train_per_experience: int | None = None
    test_per_experience: int | None = None
    class_order: str | None = None
    domains: str | None = None
    image_size: int | None = None
    classes_per_experience: int | None = None
    shared_classes: float | None = None
    order: str | None = None
    tasks: list[str] | None = None
    max_length: int | None = None
    form: str | None = None
    shared_labels: bool = False
    model: str | None = None
    hidden: list[int] | None = None
    heads: str | None = None
    task_labels: bool = False
    data_root: Path | None = None
    download: bool = True

    def __post_init__(self) -> None:
        for name in _NOT_TEXT if self.is_text else _TEXT_ONLY:
            value = getattr(self, name)
            if value is not None and value is not False:
                which = "the stream text has no such option" if self.is_text else "is of text only"
                raise ValueError(f"{name}={value!r}: {which}, got stream={self.stream!r}")

    @property
    def is_text(self) -> bool:
        """Whether the stream is one of text."""
        return self.stream == TEXT

    def stream_and_model(self) -> tuple[NamedStream | TextStream, ModelFactory | TextModelFactory]:
        """Return what makes the stream and what makes the models.

        Raises:
            ValueError: an option is wrong, or does not go with another.
        """
        if not self.is_text:
            return self._named_stream(), make_model_factory(
                self.model or "mlp", heads=self.heads or "single", hidden=self.hidden
            )
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        left_out = {"stream", "download", *_NOT_TEXT}
        return text_setup(
            **{
                k: v
                for k, v in given.items()
                if v is not None and k not in left_out and k != "model"
            },
            model=self.model,
        )

    def training(self, **given: Any) -> Training:
        """Return how all methods train; what is None has the default of the stream's kind."""
        chosen = {name: value for name, value in given.items() if value is not None}
        if not self.is_text:
            return Training(**chosen)
        usual = dict(TEXT_TRAINING)
        if chosen.get("optimizer", usual["optimizer"]) != usual["optimizer"]:
            del usual["weight_decay"]  # it is AdamW's
        return Training(**{**usual, **chosen})

    def _named_stream(self) -> NamedStream:
        given = {
            "class_order": self.class_order,
            "domains": self.domains,
            "image_size": self.image_size,
            "classes_per_experience": self.classes_per_experience,
            "shared_classes": self.shared_classes,
            "task_labels": self._task_labels() or None,
        }
        arguments = {
            **self._sizes(),
            "test_per_experience": self.test_per_experience,
            "data_root": None if self.data_root is None else str(self.data_root),
            "download": self.download,
            **{name: value for name, value in given.items() if value is not None},
        }
        return NamedStream(self.stream, arguments)

    def _sizes(self) -> dict[str, int | None]:
        """The stream's length and the samples of an experience, with the defaults of its kind."""
        experiences, train_per_experience = self.experiences, self.train_per_experience
        if experiences is not None:
            positive_int("experiences", experiences)
        kind, source = parse_stream_name(self.stream)
        if kind == "domains":
            length = {} if experiences is None else {"n_experiences": experiences}
            return {**length, "train_per_experience": train_per_experience}
        if train_per_experience is None and source == "digits" and kind not in _BY_CLASS:
            train_per_experience = 750
        if experiences is None:
            experiences = 5 if kind in _BY_CLASS else 10
        return {"n_experiences": experiences, "train_per_experience": train_per_experience}

    def _task_labels(self) -> bool:
        """Whether experiences have task labels; refuses what would train to no purpose."""
        model, heads = self.model or "mlp", self.heads or "single"
        split = self.stream.startswith(_BY_CLASS)
        if self.task_labels and heads != "multi" and ":" not in model and split:
            raise ValueError(
                f"task_labels: with heads={heads!r} all tasks of such a stream would share one "
                "head's outputs, because each numbers its classes from 0; use --heads multi"
            )
        return self.task_labels or heads == "multi"
