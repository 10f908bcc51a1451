"""A comparison on text, from what the command line is told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from avalanche_mgem.arguments import one_of
from avalanche_mgem.experiment.text.models import TextModelFactory
from avalanche_mgem.experiment.text.stream import TextStream
from avalanche_mgem.huggingface.choices import Heads
from avalanche_mgem.streams.text.forms import Form
from avalanche_mgem.streams.text.tasks import TEXT_ORDERS

# How text is trained on where nothing else is said: the rate and the decay are MIGU's.
TEXT_TRAINING: dict[str, Any] = {
    "optimizer": "adamw",
    "learning_rate": 1e-4,
    "weight_decay": 0.01,
    "batch_size": 16,
    "eval_batch_size": 128,
    "length_buckets": 50,
}


def text_setup(
    *,
    model: str | None,
    order: str | None = None,
    tasks: Sequence[str] | None = None,
    data_root: str | Path | None = None,
    form: str = "classification",
    heads: str | None = None,
    task_labels: bool = False,
    shared_labels: bool = False,
    max_length: int = 128,
    train_per_experience: int | None = None,
    test_per_experience: int | None = None,
) -> tuple[TextStream, TextModelFactory]:
    """Return the stream and the models of a comparison on text.

    order: of MIGU's paper; tasks: names of tasks instead. data_root: their folder, or None for the
    hub. heads: None: "multi", a head a task. Models that answer in words have none, and tasks share
    the words that they have in common. The rest: see `TextStream` and `TextModelFactory`.

    Raises:
        ValueError: no model, an order and tasks at once, labels that a head cannot tell apart.
    """
    if not model:
        raise ValueError(
            "model is needed for text: a name on the hub, such as roberta-base, or a local folder"
        )
    if order is not None and tasks is not None:
        raise ValueError(f"order={order!r} and tasks={','.join(tasks)!r}: give one of them")
    in_words = form != "classification"
    if in_words and heads is not None:
        raise ValueError(f"heads={heads!r}: a model has none with form={form!r}")
    head = "multi" if heads is None else heads
    labelled = task_labels or (head == "multi" and not in_words)
    if labelled and head != "multi" and not shared_labels:
        raise ValueError(
            f"task_labels: with heads={head!r} all tasks would share the outputs of one head, "
            "because each numbers its labels from 0; use heads='multi', or shared_labels"
        )
    chosen = tuple(tasks) if tasks is not None else one_of("order", order or "1", TEXT_ORDERS)
    stream = TextStream(
        chosen,
        tokenizer=model,
        folder=None if data_root is None else str(data_root),
        form=cast(Form, form),
        max_length=max_length,
        train_per_experience=train_per_experience,
        test_per_experience=test_per_experience,
        task_labels=labelled,
        shared_labels=shared_labels or in_words,
    )
    return stream, TextModelFactory(model, form=cast(Form, form), heads=cast(Heads, head))
