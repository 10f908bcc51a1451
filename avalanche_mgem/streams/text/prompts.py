"""Classification as text-to-text: a prompt that offers the label words, and the word that is right.

For models that answer in words (T5, Llama) instead of through a head.
"""

from __future__ import annotations

from string import Formatter

from avalanche_mgem.arguments import as_text, instance
from avalanche_mgem.streams.text.tasks import TextSample, TextTask

_SENTIMENT = "What is the sentiment of the text?"
_TOPIC = "What is the topic of the text?"
_INFERENCE = "How does sentence 2 relate to sentence 1?"
_ANSWER = "Going by the paragraph, is the answer to the question right?"

# The wording is ours; the texts of these tasks name their parts ("sentence 1: ...") themselves.
TASK_PROMPTS: dict[str, str] = {
    **dict.fromkeys(("amazon", "imdb", "sst2", "yelp"), _SENTIMENT),
    **dict.fromkeys(("agnews", "dbpedia", "yahoo"), _TOPIC),
    **dict.fromkeys(("cb", "mnli", "rte"), _INFERENCE),
    "boolqa": "Going by the passage, is the answer to the question true or false?",
    "copa": "Which of the two sentences is more plausible?",
    "multirc": _ANSWER,
    "qqp": "Do the first sentence and the second sentence ask the same?",
    "wic": "Does the word mean the same in both sentences?",
}
DEFAULT_PROMPT = "Which label fits the text?"
TEMPLATE = "{prompt}\nOptions: {labels}\n{text}\nAnswer:"

_FIELDS = ("prompt", "labels", "text", "text_pair")


def verbalized(
    task: TextTask, sample: TextSample, *, template: str = TEMPLATE, prompt: str | None = None
) -> tuple[str, str]:
    """Return (source text, target text) of a sample: what is asked, and the label's word.

    template: text with the fields {prompt}, {labels} (the label words with commas between), {text}
    and {text_pair}; where it does not name {text_pair}, {text} is both texts, a line each. prompt:
    None is the task's own, else that of TASK_PROMPTS, else DEFAULT_PROMPT.

    Raises ValueError for a template without {text} or with a field of another name.
    """
    instance("task", task, TextTask, what="a TextTask")
    instance("sample", sample, TextSample, what="a TextSample")
    if prompt is not None:
        instance("prompt", prompt, str, what="a text or None")
    fields = _fields(as_text("template", template))
    texts = [sample.text]
    if sample.text_pair is not None and "text_pair" not in fields:
        texts.append(sample.text_pair)
    source = template.format(
        prompt=prompt or task.prompt or TASK_PROMPTS.get(task.name, DEFAULT_PROMPT),
        labels=", ".join(task.label_words),
        text="\n".join(texts),
        text_pair=sample.text_pair or "",
    )
    return source, task.label_words[sample.label]


def _fields(template: str) -> set[str]:
    try:
        fields = {field for _, field, _, _ in Formatter().parse(template) if field is not None}
    except ValueError as error:
        raise ValueError(f"template={template!r} is malformed: {error}") from error
    if "text" not in fields or not fields.issubset(_FIELDS):
        known = ", ".join(f"{{{field}}}" for field in _FIELDS)
        raise ValueError(f"template={template!r} needs {{text}} and may name {known} only")
    return fields
