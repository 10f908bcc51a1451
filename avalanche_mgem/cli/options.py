"""What commands can be told, by theme.

Each option is said once, here: its name, type, default and help. A command takes the groups that it
needs, see `avalanche_mgem.cli.groups`, and `avalanche_mgem.cli.setup` makes of them what a
comparison is started with.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from avalanche_mgem.cli.logs import VERBOSE_HELP


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """Which methods, and their settings."""

    methods: Annotated[
        str | None,
        typer.Option(
            help="Names, with commas between; default: some of --list; "
            "with + between, a combination: replay+migu."
        ),
    ] = None
    methods_file: Annotated[
        Path | None, typer.Option(help="TOML file of further methods: variants of the known ones.")
    ] = None
    list_methods: Annotated[
        bool, typer.Option("--list", help="Show the methods and their settings, and exit.")
    ] = False
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="METHOD.SETTING=VALUE, such as mgem-d.memory_groups=8."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """Which stream. None: the default of its kind."""

    stream: Annotated[
        str,
        typer.Option(
            help="KIND-DATA: permuted, rotated, split or correlated; digits, mnist, fashion-mnist, "
            "cifar10, cifar100, a FILE.npz or a FOLDER/ of images. With +noise:3, +blur, +contrast "
            "the images are spoilt. Or domains-digit-five, domains:A.npz,B.npz. Or text."
        ),
    ] = "permuted-digits"
    experiences: Annotated[
        int | None, typer.Option(help="Length of the stream; default: 10, split: 5, domains: all.")
    ] = None
    train_per_experience: Annotated[
        int | None,
        typer.Option(
            help="Training samples of each experience; default: 750 for digits, else all."
        ),
    ] = None
    test_per_experience: Annotated[
        int | None, typer.Option(help="Test samples of each experience; default: all.")
    ] = None
    class_order: Annotated[
        str | None, typer.Option(help="Of split streams, such as 3,1,0,2; default: by the seed.")
    ] = None
    domains: Annotated[
        str | None, typer.Option(help="Of domains streams, such as mnist,usps; default: all.")
    ] = None
    image_size: Annotated[
        int | None, typer.Option(help="Height and width to resize images to.")
    ] = None
    classes_per_experience: Annotated[
        int | None, typer.Option(help="Of correlated streams; default: the most that fit.")
    ] = None
    shared_classes: Annotated[
        float | None,
        typer.Option(help="Of correlated streams: share of the classes, 0 to 1; default: 0.5."),
    ] = None
    order: Annotated[
        str | None, typer.Option(help="Of text: 1 to 6, MIGU's orders of tasks; default: 1.")
    ] = None
    tasks: Annotated[
        str | None, typer.Option(help="Of text, instead of --order: names, such as agnews,yelp.")
    ] = None
    max_length: Annotated[
        int | None, typer.Option(help="Of text: tokens of a text; default: 128.")
    ] = None
    form: Annotated[
        str | None,
        typer.Option(help="Of text: classification, or text-to-text or causal: answers in words."),
    ] = None
    shared_labels: Annotated[
        bool, typer.Option(help="Of text: tasks share the label words that they have in common.")
    ] = False
    task_labels: Annotated[
        bool, typer.Option(help="A task label an experience; --heads multi implies it.")
    ] = False
    data_root: Annotated[
        Path | None, typer.Option(help="Folder of the data sets; default: ./data, text: the hub.")
    ] = None
    download: Annotated[bool, typer.Option(help="Download what is not there.")] = True


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model. None: the default of the stream's kind."""

    model: Annotated[
        str | None,
        typer.Option(
            help="mlp, slim-resnet18, cnn5, or your own package.module:factory; default: mlp. "
            "Of text: a name on the hub or a folder."
        ),
    ] = None
    hidden: Annotated[
        str | None, typer.Option(help="Widths of the mlp's hidden layers; default: 100,100.")
    ] = None
    heads: Annotated[
        str | None,
        typer.Option(
            help="single; growing, as classes come; multi, one a task (task-incremental). "
            "Default: single, text: multi."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How all methods train, by the names of `Training`, which has the defaults.

    None: the default of the stream's kind; those of text are in experiment/text/setup.
    """

    memory: Annotated[int, typer.Option(help="Patterns kept of each experience.")] = 64
    epochs: Annotated[int, typer.Option(help="Passes over each experience.")] = 1
    batch_size: Annotated[
        int | None, typer.Option(help="Training minibatch; default: 10, text: 16.")
    ] = None
    optimizer: Annotated[
        str | None, typer.Option(help="sgd, adam or adamw; default: sgd, text: adamw.")
    ] = None
    learning_rate: Annotated[
        float | None, typer.Option(help="Of the optimiser; default: 0.1, text: 0.0001.")
    ] = None
    momentum: Annotated[float, typer.Option(help="Of SGD.")] = 0.0
    weight_decay: Annotated[
        float | None, typer.Option(help="Of the optimiser; default: 0, text: 0.01.")
    ] = None
    schedule: Annotated[
        str | None,
        typer.Option(
            help="Of the learning rate over each experience: cosine, linear, step, exponential or "
            "warmup-cosine; default: constant."
        ),
    ] = None
    clip: Annotated[
        float | None, typer.Option(help="Norm to clip gradients to, after what restricts them.")
    ] = None
    precision: Annotated[
        str | None, typer.Option(help="bf16 or fp16: half precision; default: the model's own.")
    ] = None
    accumulate: Annotated[
        int, typer.Option(help="Parts in which each minibatch goes through the model.")
    ] = 1
    augment: Annotated[
        bool, typer.Option("--augment", help="Crop and flip training images at random.")
    ] = False
    validation: Annotated[
        float,
        typer.Option(help="Share of each experience's training data to hold out and score on."),
    ] = 0.0
    eval_every: Annotated[
        int | None,
        typer.Option(help="Evaluate every so many iterations too, for the stability gap."),
    ] = None
    device: Annotated[str, typer.Option(help="A torch device, such as cpu or cuda.")] = "cpu"


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How many runs, how many at once, and where what they leave goes."""

    seeds: Annotated[int, typer.Option(help="How many seeds.")] = 3
    jobs: Annotated[
        int | None,
        typer.Option(help="Worker processes; default: the cores; of text on an accelerator: 1."),
    ] = None
    checkpoints: Annotated[
        bool,
        typer.Option(help="Save each run after each experience; after a stop it resumes there."),
    ] = True
    out: Annotated[
        Path | None,
        typer.Option(help="Results folder; default: mgem-compare, of a sweep mgem-sweep."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class LogOptions:
    """What is told on the way."""

    verbose: Annotated[bool, typer.Option("--verbose", help=VERBOSE_HELP)] = False


def names(text: str | None) -> list[str] | None:
    """Return the names in a text with commas between."""
    return None if text is None else [name.strip() for name in text.split(",")]


def two_names(text: str, known: Collection[str]) -> list[str]:
    """Return the names in "A,B", split where both are known: names of variants have commas."""
    parts = text.split(",")
    splits = [(",".join(parts[:i]).strip(), ",".join(parts[i:]).strip()) for i in range(len(parts))]
    found = next((pair for pair in splits if set(pair) <= set(known)), None)
    return names(text) or [] if found is None else list(found)


def widths(hidden: str | None) -> list[int] | None:
    """Return the numbers in a text such as "100,100"; raises ValueError for another form."""
    if hidden is None:
        return None
    try:
        return [int(width) for width in hidden.split(",")]
    except ValueError:
        raise ValueError(f"hidden must be widths such as 100,100, got {hidden!r}") from None
