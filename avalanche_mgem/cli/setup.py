"""What a comparison is started with, from what the command line is told."""

from __future__ import annotations

from typing import Any

from avalanche_mgem.arguments import positive_int
from avalanche_mgem.cli.options import (
    ModelOptions,
    RunOptions,
    StreamOptions,
    TrainingOptions,
    names,
    widths,
)
from avalanche_mgem.experiment.configuration import NamedStream, Training
from avalanche_mgem.experiment.models import ModelFactory, make_model_factory
from avalanche_mgem.experiment.text.models import TextModelFactory
from avalanche_mgem.experiment.text.setup import TEXT_TRAINING, text_setup
from avalanche_mgem.experiment.text.stream import TextStream
from avalanche_mgem.experiment.workers import available_cores
from avalanche_mgem.methods.registry import DEFAULT_METHODS, TEXT_METHODS
from avalanche_mgem.streams.naming import TEXT, parse_stream_name

_TEXT_ONLY = ("order", "tasks", "max_length", "form", "shared_labels")
_NOT_TEXT = (
    *("experiences", "class_order", "domains", "image_size", "hidden"),
    *("classes_per_experience", "shared_classes"),
)
_BY_CLASS = ("split", "correlated")  # kinds of streams that deal out the classes


def stream_and_model(
    stream: StreamOptions, model: ModelOptions
) -> tuple[NamedStream | TextStream, ModelFactory | TextModelFactory]:
    """Return what makes the stream and what makes the models.

    Raises:
        ValueError: an option that this stream does not have, one that is wrong, or does not go with
            another.
    """
    given = {**vars(stream), **vars(model)}
    _check_kind(stream, given)
    if _is_text(stream):
        return _text(given)
    hidden = widths(model.hidden)
    return _named_stream(stream, model), make_model_factory(
        model.model or "mlp", heads=model.heads or "single", hidden=hidden
    )


def training_of(stream: StreamOptions, training: TrainingOptions) -> Training:
    """Return how all methods train; what is None has the default of the stream's kind.

    Raises:
        ValueError: an option out of range.
    """
    chosen = {name: value for name, value in vars(training).items() if value is not None}
    if not _is_text(stream):
        return Training(**chosen)
    usual = dict(TEXT_TRAINING)
    if chosen.get("optimizer", usual["optimizer"]) != usual["optimizer"]:
        del usual["weight_decay"]  # it is AdamW's
    return Training(**{**usual, **chosen})


def usual_methods(stream: StreamOptions) -> tuple[str, ...]:
    """Return the names of the methods that are compared when none is named."""
    return TEXT_METHODS if _is_text(stream) else DEFAULT_METHODS


def jobs_of(stream: StreamOptions, training: TrainingOptions, runs: RunOptions) -> int:
    """Return the number of worker processes."""
    if runs.jobs is not None:
        return runs.jobs
    return 1 if _is_text(stream) and training.device != "cpu" else available_cores()


def _is_text(stream: StreamOptions) -> bool:
    return stream.stream == TEXT


def _check_kind(stream: StreamOptions, given: dict[str, Any]) -> None:
    """Raise ValueError for options that this kind of stream does not have."""
    is_text = _is_text(stream)
    for name in _NOT_TEXT if is_text else _TEXT_ONLY:
        value = given[name]
        if value is not None and value is not False:
            which = "the stream text has no such option" if is_text else "is of text only"
            raise ValueError(f"{name}={value!r}: {which}, got stream={stream.stream!r}")


def _text(given: dict[str, Any]) -> tuple[TextStream, TextModelFactory]:
    left_out = {"stream", "download", "model", *_NOT_TEXT}
    told = {k: v for k, v in given.items() if v is not None and k not in left_out}
    if "tasks" in told:
        told["tasks"] = names(told["tasks"])
    return text_setup(**told, model=given["model"])


def _named_stream(stream: StreamOptions, model: ModelOptions) -> NamedStream:
    optional = ("class_order", "domains", "image_size", "classes_per_experience", "shared_classes")
    given = {name: getattr(stream, name) for name in optional}
    given["task_labels"] = _task_labels(stream, model) or None
    arguments = {
        **_sizes(stream),
        "test_per_experience": stream.test_per_experience,
        "data_root": None if stream.data_root is None else str(stream.data_root),
        "download": stream.download,
        **{name: value for name, value in given.items() if value is not None},
    }
    return NamedStream(stream.stream, arguments)


def _sizes(stream: StreamOptions) -> dict[str, int | None]:
    """The stream's length and the samples of an experience, with the defaults of its kind."""
    experiences, train_per_experience = stream.experiences, stream.train_per_experience
    if experiences is not None:
        positive_int("experiences", experiences)
    kind, source = parse_stream_name(stream.stream)
    if kind == "domains":
        length = {} if experiences is None else {"n_experiences": experiences}
        return {**length, "train_per_experience": train_per_experience}
    if train_per_experience is None and source == "digits" and kind not in _BY_CLASS:
        train_per_experience = 750
    if experiences is None:
        experiences = 5 if kind in _BY_CLASS else 10
    return {"n_experiences": experiences, "train_per_experience": train_per_experience}


def _task_labels(stream: StreamOptions, model: ModelOptions) -> bool:
    """Whether experiences have task labels; refuses what would train to no purpose."""
    name, heads = model.model or "mlp", model.heads or "single"
    by_class = stream.stream.startswith(_BY_CLASS)
    if stream.task_labels and heads != "multi" and ":" not in name and by_class:
        raise ValueError(
            f"task_labels: with heads={heads!r} all tasks of such a stream would share one "
            "head's outputs, because each numbers its classes from 0; use --heads multi"
        )
    return stream.task_labels or heads == "multi"
