"""What the streams take."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from fuzz_pure import (
    ANY_STRING,
    COUNT,
    FLAG,
    PATH,
    SEED,
    SIZE,
    one_of,
    optional,
)
from fuzz_values import Target, kind
from PIL import Image
from torch.utils.data import TensorDataset

import avalanche_mgem.streams as streams
from avalanche_mgem.streams import text

_X = torch.linspace(0, 1, 12 * 16).reshape(12, 1, 4, 4)
_Y = torch.arange(12) % 3
DATA = streams.ArrayData("tiny", _X, _Y, _X[:6], _Y[:6])
_FLAT = streams.ArrayData("flat", _X.flatten(1), _Y, _X[:6].flatten(1), _Y[:6])

_DATA = kind(DATA)
_LESS = optional(kind(1, np.int64(2), may="1|3|np.int64|np.uint8"))
_COMMON = {
    "n_experiences": kind(2, 3, np.int64(3), may="1|3|np.int64|np.uint8"),
    "train_per_experience": _LESS,
    "test_per_experience": _LESS,
    "image_size": optional(SIZE),
    "seed": SEED,
    "task_labels": FLAG,
}
_ORDER = kind(None, [2, 1, 0], (0, 1, 2), np.array([1, 2, 0]), "2,0,1", may="None")
_SOURCE = kind("tiny.npz")
_ROOT = optional(PATH)
_STREAM = {"name": "stream"}
STREAM_NAME = kind("permuted-digits", "split:a/b.npz", "domains:a.npz,b.npz", "split:birds/")


def write_files():
    """Put what the names above stand for into the current folder."""
    parts = {"x_train": _X.squeeze(1), "y_train": _Y, "x_test": _X[:6].squeeze(1), "y_test": _Y[:6]}
    np.savez("tiny.npz", **{name: part.numpy() for name, part in parts.items()})
    for label in ("a", "b"):
        Path("birds", label).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (4, 4), (i, 0, 0)).save(Path("birds", label, f"{i}.png"))
    task = Path("tasks", "t")
    task.mkdir(parents=True)
    (task / "labels.json").write_text('["red", "green"]')
    lines = "".join(f'{{"text": "a", "label": {i}}}\n' for i in range(2))
    for part in ("train", "test"):
        (task / f"{part}.jsonl").write_text(lines)


def _tasks():
    samples = [text.TextSample(f"text {i % 2}", i % 2) for i in range(4)]
    return text.TextTask("colours", ("red", "green"), samples, samples)


def words(texts, max_length):
    """A tokenizer of whole words."""
    rows = [(each if isinstance(each, str) else " ".join(each)).split() for each in texts]
    return {"input_ids": [[1 + len(word) for word in row][:max_length] for row in rows]}


words.pad_token_id = 0
words.padding_side = "right"
_TASK = _tasks()
_SAMPLES = _TASK.train
_TOKENS = text.tokenized(["a b", "c"], words, max_length=3)
_LABELS = kind(("red", "green"), ["a", "b"])
_TOKENIZER = kind(words)
_HUB = kind(text.HUB_TASKS, {}, may="{}|{'x': 'y'}|{'x': [None]}|{0: 1}|{None: None}")
_DOMAINS = {"a": (["a b", "c"], ["a"]), "b": (["d"], ["e f"])}
_TEXTS = kind(["a b", "c"], ("a",), [("a", "b")], may="['x']|np object|set")
_LIMIT = optional(COUNT)
_NAME = {"name": "task"}
_ONE_TASK = {"folder": kind("tasks"), "name": kind("t")}


def _small_stream(
    name, data_root=None, download=True, n_experiences=2, seed=0, train_per_experience=3
):
    return streams.make_stream(
        name,
        data_root=data_root,
        download=download,
        n_experiences=n_experiences,
        seed=seed,
        train_per_experience=train_per_experience,
    )


_SETS = [TensorDataset(_X, _Y), TensorDataset(_X[:6], _Y[:6])]
STREAMS = {
    "scenario_from_datasets": Target(
        streams.scenario_from_datasets,
        {
            "train": kind(_SETS, tuple(_SETS)),
            "test": kind(_SETS, _SETS[::-1]),
            "task_labels": kind(False, True, [0, 1], np.array([3, 3]), may="True|False|np.bool_"),
        },
    ),
    "ArrayData": Target(
        streams.ArrayData,
        {
            "name": kind("tiny", may=ANY_STRING),
            "x_train": kind(_X, _X.to(torch.uint8), _X.permute(0, 1, 3, 2)),
            "y_train": kind(_Y),
            "x_test": kind(_X[:6]),
            "y_test": kind(_Y[:6], _Y[::2]),
        },
    ),
    "permuted_stream": Target(streams.permuted_stream, {"data": kind(DATA, _FLAT), **_COMMON}),
    "rotated_stream": Target(
        streams.rotated_stream,
        {
            "data": _DATA,
            **_COMMON,
            "max_angle": kind(
                90,
                np.float32(30),
                may="1|3|0.5|2.0|1e-320|2**70|Fraction|np.int64|np.uint8|np.float32",
            ),
        },
    ),
    "split_stream": Target(
        streams.split_stream, {"data": kind(DATA, _FLAT), **_COMMON, "class_order": _ORDER}
    ),
    "correlated_stream": Target(
        streams.correlated_stream,
        {
            "data": kind(DATA, _FLAT),
            **_COMMON,
            "n_experiences": kind(2, np.int64(2), may="1|3|np.int64|np.uint8"),
            "classes_per_experience": kind(None, 1, np.int64(2), may="None|1|3|np.int64|np.uint8"),
            "shared_classes": kind(
                0.5, 0, 1, np.float32(0.5), may="0|1|0.0|-0.0|0.5|1e-320|Fraction|np.float32"
            ),
            "class_order": _ORDER,
        },
    ),
    "domains_stream": Target(
        streams.domains_stream,
        {
            "data": kind([DATA, DATA], (DATA,)),
            **_COMMON,
            "n_experiences": kind(None, 1, np.int64(2), may="None|1"),
            "image_size": SIZE,
        },
    ),
    "corrupted": Target(
        streams.corrupted,
        {
            "stream": kind(streams.permuted_stream(DATA, n_experiences=2)),
            "corruption": kind("noise:3", ["blur", "none"], "contrast:0.5,noise"),
            "seed": SEED,
        },
    ),
    "folder_digest": Target(streams.folder_digest, {"folder": PATH}),
    "load_data": Target(
        streams.load_data,
        {"source": _SOURCE, "data_root": _ROOT, "download": FLAG, "keep_uint8": FLAG},
    ),
    "load_domains": Target(
        streams.load_domains,
        {"sources": kind(["tiny.npz", "tiny.npz"]), "data_root": _ROOT, "download": FLAG},
    ),
    "load_image_folder": Target(
        streams.load_image_folder,
        {
            "folder": kind("birds"),
            "image_size": SIZE,
            "test_share": kind(0.5, np.float32(0.5), may="0.5|1e-320|Fraction|np.float32"),
            "seed": SEED,
        },
    ),
    "make_stream": Target(
        _small_stream,
        {
            "name": kind("permuted:tiny.npz", "split:tiny.npz", "permuted:tiny.npz+noise:2"),
            "data_root": _ROOT,
            "download": FLAG,
            "n_experiences": _COMMON["n_experiences"],
            "seed": SEED,
            "train_per_experience": _LESS,
        },
        called=_STREAM,
    ),
    "parse_stream_name": Target(streams.parse_stream_name, {"name": STREAM_NAME}, called=_STREAM),
    "stream_files": Target(
        streams.stream_files,
        {
            "name": STREAM_NAME,
            "data_root": _ROOT,
        },
        left=dict.fromkeys(("domains", "tasks"), "below, with the kind of stream that has them"),
        called=_STREAM,
    ),
    "stream_files (domains)": Target(
        partial(streams.stream_files, "domains:a.npz,b.npz"),
        {"domains": kind(None, "a.npz", ["b.npz", "a.npz"], may="None"), "data_root": _ROOT},
        left={"tasks": "of text"},
    ),
    "stream_files (tasks)": Target(
        partial(streams.stream_files, "text", data_root="tasks"),
        {"tasks": kind(None, "t", ["t"], [_TASK], may="None")},
        left=dict.fromkeys(("domains", "data_root"), "above"),
    ),
    "stream_folder": Target(
        streams.stream_folder, {"name": STREAM_NAME, "data_root": _ROOT}, called=_STREAM
    ),
}

TEXT = {
    "TextTask": Target(
        text.TextTask,
        {
            "name": kind("colours", may="'x'|a null|a regex|'3'|'nan'|np.str"),
            "label_words": _LABELS,
            "train": kind(_SAMPLES, tuple(_SAMPLES)),
            "test": kind(_SAMPLES[:1], _SAMPLES),
            "prompt": kind(None, "Which?", may=f"None|{ANY_STRING}"),
        },
    ),
    "text_stream": Target(
        partial(text.text_stream, folder="tasks"),
        {
            "tasks": kind([_TASK], (_TASK,), "t", may="set"),
            "tokenizer": _TOKENIZER,
            "folder": _ROOT,
            "max_length": COUNT,
            "train_per_task": optional(
                kind(2, np.int64(3), may="3|np.int64|np.uint8|2**70|10**400")
            ),
            "test_per_task": _LIMIT,
            "seed": SEED,
            "task_labels": FLAG,
            "shared_labels": FLAG,
            "cache_folder": _ROOT,
            "padding_side": kind(None, "right", "left", may="None"),
            "hub_tasks": _HUB,
            "form": kind("classification", more={"near": "classifcation"}),
        },
        called={"tasks": "task"},
    ),
    "plain_text_stream": Target(
        text.plain_text_stream,
        {
            "domains": kind(_DOMAINS),
            "tokenizer": _TOKENIZER,
            "names": kind(None, ["b"], ("b", "a"), may="None"),
            "max_length": COUNT,
            "train_per_domain": _LIMIT,
            "test_per_domain": _LIMIT,
            "seed": SEED,
            "task_labels": FLAG,
            "cache_folder": _ROOT,
            "padding_side": kind(None, "right", "left", may="None"),
        },
    ),
    "tokenized": Target(
        text.tokenized,
        {"texts": _TEXTS, "tokenizer": _TOKENIZER, "max_length": COUNT, "cache_folder": _ROOT},
    ),
    "Tokens": Target(
        text.Tokens,
        {
            "lengths": kind(np.array([2, 1], np.int32)),
            "fields": kind({"input_ids": np.array([1, 2, 3], np.int32)}),
        },
    ),
    "PadToLongest": Target(
        text.PadToLongest,
        {
            "padding": kind({}, {"labels": -100}, may="{}"),
            "side": one_of("right", "left"),
            "multiple_of": SIZE,
        },
    ),
    "LengthBatchSampler": Target(
        text.LengthBatchSampler,
        {
            "lengths": kind(
                [3, 1, 2], np.array([1, 2]), [], may="[]|()|[0]|np []|tensor [0]|tensor bool"
            ),
            "batch_size": COUNT,
            "window": COUNT,
            "drop_last": FLAG,
            "seed": kind(
                0, [1, 2], np.int64(3), may="0|1|3|2**70|10**400|np.int64|np.uint8|[0]|[]|()|np []"
            ),
        },
    ),
    "LengthBuckets": Target(text.LengthBuckets, {"window": COUNT, "seed": SEED}),
    "label_words_of": Target(
        text.label_words_of, {"scenario": kind(text.text_stream([_TASK], tokenizer=words))}
    ),
    "read_hub_task": Target(
        text.read_hub_task, {"name": kind("rte"), "table": kind(text.HUB_TASKS)}, called=_NAME
    ),
    "read_text_task": Target(text.read_text_task, _ONE_TASK, called=_NAME),
    "read_text_tasks": Target(
        partial(text.read_text_tasks, folder="tasks"),
        {"tasks": kind([_TASK], (_TASK,), "t"), "folder": _ROOT, "hub_tasks": _HUB},
        called={"tasks": "task"},
    ),
    "text_task_files": Target(text.text_task_files, _ONE_TASK, called=_NAME),
    "text_task_names": Target(text.text_task_names, {}),
    "text_tasks_in": Target(text.text_tasks_in, {"folder": PATH}),
    "verbalized": Target(
        text.verbalized,
        {
            "task": kind(_TASK),
            "sample": kind(_SAMPLES[0]),
            "template": kind("{text}", "{prompt}{labels}{text}"),
            "prompt": kind(None, "Which?", may=f"None|{ANY_STRING}"),
        },
    ),
}
