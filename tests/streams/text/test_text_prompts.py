import pytest
from text_cases import make_task

from avalanche_mgem.streams.text import TASK_PROMPTS, TextSample, text_task_names, verbalized


def test_the_source_asks_and_the_target_is_the_word():
    task = make_task()
    for sample in task.train:
        source, target = verbalized(task, sample)
        assert target == task.label_words[sample.label]
        assert source == (
            f"Which label fits the text?\nOptions: red, green, blue\n{sample.text}\nAnswer:"
        )


def test_every_task_of_the_paper_has_a_prompt():
    assert set(TASK_PROMPTS) == set(text_task_names())
    for name, prompt in TASK_PROMPTS.items():
        task = make_task(name)
        assert verbalized(task, task.train[0])[0].startswith(prompt)


def test_a_prompt_of_ones_own_goes_first_then_the_tasks():
    task = make_task("sst2")
    object.__setattr__(task, "prompt", "Colour?")
    assert verbalized(task, task.train[0])[0].startswith("Colour?\n")
    assert verbalized(task, task.train[0], prompt="Hue?")[0].startswith("Hue?\n")


def test_pairs_are_two_lines_or_where_the_template_wants_them():
    task, sample = make_task(pairs=True), TextSample("first", 1, "second")
    assert "\nfirst\nsecond\n" in verbalized(task, sample)[0]
    template = "{text} => {text_pair} [{labels}]"
    source = verbalized(task, sample, template=template)[0]
    assert source == "first => second [red, green, blue]"


def test_braces_in_a_text_are_text():
    sample = TextSample("a {labels} {0} }{", 0)
    assert verbalized(make_task(), sample, template="{text}")[0] == sample.text


@pytest.mark.parametrize(
    "template", ["no field", "{prompt}", "{text} {label}", "{text} {}", "{text", "{text.upper}"]
)
def test_a_template_that_does_not_fit_is_refused(template):
    with pytest.raises(ValueError, match="template="):
        verbalized(make_task(), TextSample("a", 0), template=template)
