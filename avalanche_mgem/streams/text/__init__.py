"""Streams of text classification tasks, from a folder or from the Hugging Face hub.

`text_stream("1", folder="my/tasks", tokenizer=tokenizer)` is order 1 of MIGU's paper. A tokenizer
of transformers will do, or any function that behaves like one; nothing here imports transformers.
Texts without classes, to pre-train on, are in `plain_text_stream`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from avalanche_mgem.lazy import public_names

if TYPE_CHECKING:
    from avalanche_mgem.streams.text.answers import label_words_of
    from avalanche_mgem.streams.text.batches import Features, PadToLongest, TextBatch
    from avalanche_mgem.streams.text.files import read_text_task, text_task_files, text_tasks_in
    from avalanche_mgem.streams.text.forms import Form
    from avalanche_mgem.streams.text.hub import HUB_TASKS, HubTask, read_hub_task
    from avalanche_mgem.streams.text.lengths import LengthBatchSampler, LengthBuckets
    from avalanche_mgem.streams.text.plain import plain_text_stream
    from avalanche_mgem.streams.text.prompts import TASK_PROMPTS, verbalized
    from avalanche_mgem.streams.text.stream import read_text_tasks, text_stream
    from avalanche_mgem.streams.text.tasks import TEXT_ORDERS, TextSample, TextTask, text_task_names
    from avalanche_mgem.streams.text.tokens import Tokens, tokenized

__all__ = [
    "HUB_TASKS",
    "TASK_PROMPTS",
    "TEXT_ORDERS",
    "Features",
    "Form",
    "HubTask",
    "LengthBatchSampler",
    "LengthBuckets",
    "PadToLongest",
    "TextBatch",
    "TextSample",
    "TextTask",
    "Tokens",
    "label_words_of",
    "plain_text_stream",
    "read_hub_task",
    "read_text_task",
    "read_text_tasks",
    "text_stream",
    "text_task_files",
    "text_task_names",
    "text_tasks_in",
    "tokenized",
    "verbalized",
]

__getattr__, __dir__ = public_names(
    __name__,
    {
        "avalanche_mgem.streams.text.answers": ("label_words_of",),
        "avalanche_mgem.streams.text.batches": ("Features", "PadToLongest", "TextBatch"),
        "avalanche_mgem.streams.text.files": ("read_text_task", "text_task_files", "text_tasks_in"),
        "avalanche_mgem.streams.text.forms": ("Form",),
        "avalanche_mgem.streams.text.hub": ("HUB_TASKS", "HubTask", "read_hub_task"),
        "avalanche_mgem.streams.text.lengths": ("LengthBatchSampler", "LengthBuckets"),
        "avalanche_mgem.streams.text.plain": ("plain_text_stream",),
        "avalanche_mgem.streams.text.prompts": ("TASK_PROMPTS", "verbalized"),
        "avalanche_mgem.streams.text.stream": ("read_text_tasks", "text_stream"),
        "avalanche_mgem.streams.text.tasks": (
            "TEXT_ORDERS",
            "TextSample",
            "TextTask",
            "text_task_names",
        ),
        "avalanche_mgem.streams.text.tokens": ("Tokens", "tokenized"),
    },
)
