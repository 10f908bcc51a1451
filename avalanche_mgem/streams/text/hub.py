"""Reading text tasks from the Hugging Face hub, by the `datasets` package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from avalanche_mgem.arguments import instance, suggestion
from avalanche_mgem.streams.text.tasks import TextSample, TextTask

_STARS = ("very negative", "negative", "neutral", "positive", "very positive")
_BAD_GOOD = ("Bad", "Good")
_FALSE_TRUE = ("False", "True")
_PAIR = "sentence 1: {premise}\nsentence 2: {hypothesis}"


@dataclass(frozen=True)
class HubTask:
    """Where a task lies on the hub, and how a row becomes a sample.

    path, config: as for `datasets.load_dataset`. words: of the labels, in the hub's order. text:
    a template over the columns. label: the column of the label, an integer. test: the split to test
    on; the hub has no labels for the test splits of GLUE and SuperGLUE.
    """

    path: str
    config: str | None
    words: tuple[str, ...]
    text: str = "{text}"
    label: str = "label"
    train: str = "train"
    test: str = "test"


def _glue(config: str, words: tuple[str, ...], text: str, test: str = "validation") -> HubTask:
    return HubTask("nyu-mll/glue", config, words, text, test=test)


def _super_glue(config: str, words: tuple[str, ...], text: str) -> HubTask:
    return HubTask("aps/super_glue", config, words, text, test="validation")


HUB_TASKS: dict[str, HubTask] = {
    "agnews": HubTask(
        "fancyzhx/ag_news", None, ("World", "Sports", "Business", "Science or Technology")
    ),
    # The 5-star corpus of the paper is on the hub under no official name; this is another one.
    "amazon": HubTask("SetFit/amazon_reviews_multi_en", None, _STARS),
    "boolqa": _super_glue("boolq", _FALSE_TRUE, "question: {question}\npassage: {passage}"),
    "cb": _super_glue("cb", ("entailment", "contradiction", "neutral"), _PAIR),
    "copa": _super_glue(
        "copa",
        ("A", "B"),
        'Which sentence is the {question} of "{premise}"? Choose one between A and B.\n'
        "A: {choice1}\nB: {choice2}",
    ),
    "dbpedia": HubTask(
        "fancyzhx/dbpedia_14",
        None,
        (
            *("Company", "Educational Institution", "Artist", "Athlete", "Office Holder"),
            *("Mean of Transportation", "Building", "Natural Place", "Village", "Animal"),
            *("Plant", "Album", "Film", "Written Work"),
        ),
        "Title: {title}\nText: {content}",
    ),
    "imdb": HubTask("stanfordnlp/imdb", None, _BAD_GOOD),
    "mnli": _glue("mnli", ("entailment", "neutral", "contradiction"), _PAIR, "validation_matched"),
    "multirc": _super_glue(
        "multirc", _FALSE_TRUE, "paragraph: {paragraph}\nquestion: {question}\nanswer: {answer}"
    ),
    "qqp": _glue("qqp", _FALSE_TRUE, "first sentence: {question1}\nsecond sentence: {question2}"),
    "rte": _super_glue("rte", ("entailment", "contradiction"), _PAIR),
    "sst2": _glue("sst2", _BAD_GOOD, "{sentence}"),
    "wic": _super_glue("wic", _FALSE_TRUE, "word: {word}\n{sentence1}\n{sentence2}"),
    "yahoo": HubTask(
        "community-datasets/yahoo_answers_topics",
        None,
        (
            *("Society & Culture", "Science & Mathematics", "Health", "Education & Reference"),
            *("Computers & Internet", "Sports", "Business & Finance", "Entertainment & Music"),
            *("Family & Relationships", "Politics & Government"),
        ),
        "{question_title} {question_content} {best_answer}",
        label="topic",
    ),
    "yelp": HubTask("Yelp/yelp_review_full", None, _STARS),
}


def read_hub_task(name: str, *, table: Mapping[str, HubTask] = HUB_TASKS) -> TextTask:
    """Read a task from the hub, or from where `datasets` keeps what it once downloaded.

    table: what the names stand for. Rows without a label (-1 on the hub) are left out.

    Raises ImportError where `datasets` is not installed, and ValueError for a name that is not in
    the table, and where the hub's data cannot be had or is not what the table says.
    """
    instance("table", table, Mapping, what="a mapping of names to HubTask")
    instance("name", name, str, what="the name of a task")
    if name not in table:
        raise ValueError(
            f"the hub's table has no task {name!r}; {suggestion(name, map(str, table))}; tasks of "
            "your own are read where a folder is named"
        )
    source = instance("table", table[name], HubTask, what="a mapping of names to HubTask")
    train, test = (_rows(name, source, split) for split in (source.train, source.test))
    return TextTask(name, source.words, train, test)


def _rows(name: str, source: HubTask, split: str) -> list[TextSample]:
    where = f"task {name!r}: {source.path} ({source.config or 'no config'}), split {split!r}"
    load = _load_dataset()
    try:
        rows = load(source.path, source.config, split=split)
    # The hub's client raises errors of many packages: requests, httpx, fsspec, its own.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{where} cannot be had ({type(error).__name__}: {reason})") from error
    try:
        return list(_samples(rows, source))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where} is not what the table says: {error!r}") from error


def _samples(rows: Any, source: HubTask) -> Iterator[TextSample]:
    for row in rows:
        label = int(row[source.label])
        if label >= 0:
            yield TextSample(source.text.format_map(row), label)


def _load_dataset() -> Any:
    try:
        from datasets import load_dataset  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise ImportError(
            "tasks from the hub need the package datasets: pip install 'avalanche-mgem[hf]'. "
            "Or give the folder that holds the tasks as folder"
        ) from error
    return load_dataset
