"""What experiments and their reports take."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from avalanche.training.supervised import Naive
from fuzz_pure import (
    ANY_STRING,
    COUNT,
    FLAG,
    NOT_NEGATIVE,
    PATH,
    POSITIVE,
    SIZE,
    one_of,
    optional,
)
from fuzz_values import Target, kind

import avalanche_mgem.experiment as experiment
from avalanche_mgem.report.figures import accuracy as plots
from avalanche_mgem.results.store import ResultStore
from avalanche_mgem.streams import make_stream

_TEXT = "'x'|a null|a regex|'3'|'nan'|np.str"
_NAME = "''|'x'|a regex|'3'|'nan'|np.str"
_ANY_HEADS = one_of("single", "growing", "multi")
_NO_WIDTHS = "[]|()|np []|tensor [0]"
_WIDTHS = kind((3,), [4, 5], [np.int64(3)], may="")
_SETTINGS = "{}|{'x': 'y'}|{'x': [None]}|{0: 1}|{None: None}"
_REAL = "0|1|3|0.0|-0.0|0.5|2.0|1e-320|2**70|Fraction|np.int64|np.uint8|np.float32"
_RUN = experiment.RunResult("naive", "tiny", 0, np.eye(2), np.zeros(2), 1.0)
_RUNS = kind([_RUN], (_RUN,))
_TWO_METHODS = kind([_RUN, replace(_RUN, method="gem")], (_RUN, replace(_RUN, method="gem")))
_TWO_NAMES = (("naive", "gem"), ["gem", "naive"])
_METHODS = kind(
    [experiment.METHODS["naive"]],
    (experiment.METHODS["gem"],),
    [],
    may="[]|()|set|np []|tensor [0]",
)


def write_files():
    """Put what the names above stand for into the current folder."""
    Path("methods.toml").write_text('[weak]\nbase = "gem"\nmemory_strength = 0.1\n')
    Path("space.toml").write_text("[gem]\nmemory_strength = {low = 0.0, high = 1.0}\n")
    store = ResultStore("results")
    store.create()
    store.save("a", _RUN)


EXPERIMENT = {
    "MLPFactory": Target(
        experiment.MLPFactory,
        {
            "hidden": kind((3,), [4, 5], (), [np.int64(3)], may=_NO_WIDTHS),
            "heads": _ANY_HEADS,
        },
    ),
    "CNNFactory": Target(
        experiment.CNNFactory,
        {"channels": _WIDTHS, "heads": _ANY_HEADS, "norm": one_of("batch", "group", "none")},
    ),
    "SlimResNet18Factory": Target(
        experiment.SlimResNet18Factory, {"width": SIZE, "heads": _ANY_HEADS}
    ),
    "TextModelFactory": Target(
        experiment.TextModelFactory,
        {
            "model": kind("bert", may=f"{_NAME}|Path"),
            "form": one_of("classification", "text-to-text", "causal"),
            "heads": one_of("multi", "growing", "single"),
            "pooling": one_of("auto", "mean", "first", "last", "pooler"),
            "tokenizer": kind(None, "bert", may=f"None|{_NAME}|Path"),
            "label_words": kind(None, {0: "a"}, may="None"),
        },
    ),
    "make_model_factory": Target(
        experiment.make_model_factory,
        {
            "name": kind("mlp", "cnn5", "slim-resnet18", more={"near": "mpl"}),
            "heads": _ANY_HEADS,
            "hidden": kind(None, [4], may=f"None|{_NO_WIDTHS}"),
        },
        called={"name": "model"},
    ),
    "load_model_factory": Target(
        experiment.load_model_factory,
        {"path": kind("avalanche_mgem.experiment:MLPFactory")},
        called={"path": "model"},
    ),
    "Training": Target(
        experiment.Training,
        {
            "learning_rate": POSITIVE,
            "batch_size": COUNT,
            "epochs": COUNT,
            "eval_batch_size": COUNT,
            "device": kind("cpu", "cuda:0", may="0|1|3|np.int64|np.uint8|'3'"),
            "memory": COUNT,
            "optimizer": one_of("sgd", "adam", "adamw"),
            "momentum": kind(
                0.5, 0, np.float32(0.5), may="0|0.0|-0.0|0.5|1e-320|Fraction|np.float32"
            ),
            "weight_decay": NOT_NEGATIVE,
            "length_buckets": optional(COUNT),
            "validation": kind(0.0, 0.25, may="0|0.0|-0.0|0.5|1e-320|Fraction|np.float32"),
            "eval_every": optional(COUNT),
            "precision": optional(one_of("bf16", "fp16")),
            # More parts than samples in a minibatch are refused.
            "accumulate": kind(1, np.int64(3), may="1|3|np.int64|np.uint8"),
            "clip": optional(POSITIVE),
            "schedule": optional(one_of("cosine", "step")),
            "augment": FLAG,
        },
    ),
    "Method": Target(
        partial(experiment.Method, strategy=Naive),
        {
            "name": kind("own", may=_TEXT),
            "strategy": kind(Naive, lambda **_: None, may="a class|a function"),
            "settings": kind({}, {"mem_size": 3}, may="{}|{'x': 'y'}|{'x': [None]}"),
            "description": kind("", "a line", may=ANY_STRING),
            "check": kind(None, lambda settings, n: None, may="None|a class|a function"),
            "whole_stream": FLAG,
            "space": kind({}, {"alpha": experiment.Range(0, 1)}, may="{}"),
        },
    ),
    "FixedStream": Target(
        experiment.FixedStream,
        {
            "scenario": kind(make_stream("split-digits", n_experiences=2), may=""),
            "name": kind("mine", may=_TEXT),
            "version": kind(None, "1", may=f"{_TEXT}|None"),
        },
        called={"scenario": "stream"},
    ),
    "NamedStream": Target(
        experiment.NamedStream,
        {
            # Whether there is such a stream is told where it is made.
            "name": kind("permuted-digits", "split:a.npz", "text", may=_TEXT),
            "arguments": kind({}, {"n_experiences": 3}, may="{}|{'x': 'y'}|{'x': [None]}"),
        },
        called={"name": "stream"},
    ),
    "TextStream": Target(
        experiment.TextStream,
        {
            "tasks": kind("1", ("agnews", "yahoo"), 1, may="1|3|'3'|np.int64|np.uint8"),
            "tokenizer": kind("bert", may=f"{_NAME}|Path"),
            "folder": kind(None, "tasks", may=f"{PATH.names()}|None"),
            "form": one_of("classification", "text-to-text", "causal"),
            "max_length": COUNT,
            "train_per_experience": optional(COUNT),
            "test_per_experience": optional(COUNT),
            "task_labels": FLAG,
            "shared_labels": FLAG,
            "cache_folder": kind(None, "cache", may=f"{PATH.names()}|None"),
        },
    ),
    "find_method": Target(
        experiment.find_method,
        {"name": kind("naive", "replay+migu", more={"near": "naivee"})},
        called={"name": "methods"},
    ),
    "Range": Target(
        experiment.Range,
        {
            # Below the least good value of high, and above 0 where log=True.
            "low": kind(0.5, 1, np.float32(0.5), may=f"{_REAL}|-1|-0.5"),
            "high": kind(2.0, 3, may=f"{_REAL}|-1|-0.5"),
            "log": FLAG,
        },
    ),
    "Choices": Target(
        experiment.Choices,
        {"values": kind(("a", "b"), [1, 2.5], (True,), may="[0]|['x']|['']")},
    ),
    "load_spaces": Target(
        experiment.load_spaces, {"path": kind("space.toml")}, called={"path": "space"}
    ),
    "load_methods": Target(experiment.load_methods, {"path": kind("methods.toml")}),
    "load_results": Target(
        experiment.load_results,
        {
            "folders": kind("results", ["results"]),
            "only_methods": kind(None, ["naive"], may="None"),
            "only_streams": kind(None, ["tiny"], may="None"),
        },
        called={"only_methods": "methods", "only_streams": "streams"},
    ),
    "methods_table": Target(
        experiment.methods_table, {"methods": replace(_METHODS, may=_METHODS.may | {"None"})}
    ),
}
PLOTS = {
    **{
        name: Target(getattr(plots, name), {"results": _RUNS})
        for name in ("accuracy_figure", "forgetting_figure", "heatmap_figure", "tradeoff_figure")
    },
    **{
        name: Target(getattr(plots, name), {"results": _RUNS, "path": PATH}, also=(OSError,))
        for name in ("plot_accuracy", "plot_tradeoff")
    },
}
REPORT = {
    "write_report": Target(
        experiment.write_report,
        {
            "results": _TWO_METHODS,
            "out": PATH,
            "tensorboard": FLAG,
            "paired": kind(None, *_TWO_NAMES, may="None"),
            "html": FLAG,
            "metrics": kind(None, ["no such file", "nor this"], may="None"),
        },
    ),
    "paired_comparisons": Target(
        experiment.paired_comparisons, {"results": _TWO_METHODS, "paired": kind(*_TWO_NAMES)}
    ),
}
