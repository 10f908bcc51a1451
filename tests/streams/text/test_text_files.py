import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from text_cases import make_task, write_lines, write_task

from avalanche_mgem.streams.text import (
    TextSample,
    TextTask,
    read_text_task,
    text_task_files,
    text_tasks_in,
)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("pairs", [False, True])
def test_what_is_read_is_what_was_written(tmp_path, compressed, pairs):
    task = make_task(pairs=pairs)
    own = write_task(tmp_path, task, compressed=compressed)
    read = read_text_task(tmp_path, "colours")
    assert (read.name, read.label_words, read.prompt) == (task.name, task.label_words, None)
    assert read.train == task.train
    assert read.test == task.test
    ending = "jsonl.gz" if compressed else "jsonl"
    assert [file.name for file in text_task_files(tmp_path, "colours")] == [
        "labels.json",
        f"train.{ending}",
        f"test.{ending}",
    ]
    assert all(file.parent == own for file in text_task_files(tmp_path, "colours"))


@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5))
def test_every_text_comes_back_however_it_is_escaped(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("texts")
    rows = [TextSample(text, i % 2) for i, text in enumerate([*texts, "a", "b"])]
    own = write_task(folder, TextTask("t", ("no", "yes"), rows, rows[:1]))
    lines = [json.dumps({"label": s.label, "text": s.text}, ensure_ascii=False) for s in rows]
    write_lines(own / "train.jsonl", lines)
    assert read_text_task(folder, "t").train == rows


def test_words_as_labels_other_keys_and_blank_lines(tmp_path):
    own = write_task(tmp_path, make_task())
    write_lines(
        own / "train.jsonl",
        ['{"text": "a", "label": "green", "id": 7}', "", '{"label": 2, "text": "b"}', "  "],
    )
    write_lines(own / "test.jsonl", ['{"text": "c", "label": 1}'])
    assert read_text_task(tmp_path, "colours").train == [TextSample("a", 1), TextSample("b", 2)]


def test_labels_may_bring_a_prompt(tmp_path):
    labels = {"labels": ["red", "green", "blue"], "prompt": "Which colour?"}
    write_task(tmp_path, make_task(), labels=labels)
    assert read_text_task(tmp_path, "colours").prompt == "Which colour?"


def test_the_tasks_of_a_folder(tmp_path):
    for name in ("b", "a"):
        write_task(tmp_path, make_task(name))
    (tmp_path / "notes").mkdir()
    assert text_tasks_in(tmp_path) == ("a", "b")


GOOD = '{"text": "a", "label": 0}'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"not JSON: .* \(column"),
        ('{"text": "a", "label": 0} x', "not JSON: Extra data"),
        ('["a", 0]', "needs an object with 'text' and 'label', got list"),
        ('{"label": 0}', "has no 'text', but 'label'"),
        ('{"text": "a", "lable": 0}', "has no 'label', but 'text', 'lable'"),
        ("{}", "has no 'text', but nothing"),
        ('{"text": 3, "label": 0}', "'text' must be a string, got 3"),
        ('{"text": "a", "label": 3}', r"label 3 is neither one of 0\.\.2 nor a word"),
        ('{"text": "a", "label": -1}', "label -1 is neither"),
        ('{"text": "a", "label": true}', "label True is neither"),
        ('{"text": "a", "label": 1.0}', r"label 1\.0 is neither"),
        ('{"text": "a", "label": "gren"}', "label 'gren' .* did you mean 'green'"),
        ('{"text": "a", "label": 0, "text_pair": 1}', "'text_pair' must be a string, got 1"),
        ('{"text": "a", "label": 0, "text_pair": "b"}', "some lines have 'text_pair'"),
    ],
)
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_line_that_does_not_fit_is_named(tmp_path, line, message, ending):
    own = write_task(tmp_path, make_task(), compressed=bool(ending))
    write_lines(own / f"train.jsonl{ending}", [GOOD, "", line, GOOD])
    with pytest.raises(ValueError, match=rf"train\.jsonl{ending}, line 3: .*{message}"):
        read_text_task(tmp_path, "colours")


def test_bytes_that_are_no_text_are_named(tmp_path):
    own = write_task(tmp_path, make_task())
    (own / "test.jsonl").write_bytes(b'{"text": "\xff", "label": 0}\n')
    with pytest.raises(ValueError, match=r"test\.jsonl, line 1: .*utf-8"):
        read_text_task(tmp_path, "colours")


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_file_is_named(tmp_path, content):
    own = write_task(tmp_path, make_task())
    (own / "test.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=r"test\.jsonl is empty"):
        read_text_task(tmp_path, "colours")


@pytest.mark.parametrize("spoil", [lambda whole: whole[:-20], lambda _: b"text"])
def test_a_damaged_archive_is_named(tmp_path, spoil):
    own = write_task(tmp_path, make_task(), compressed=True)
    file = own / "train.jsonl.gz"
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(ValueError, match=r"train\.jsonl\.gz.* cannot be read to its end"):
        read_text_task(tmp_path, "colours")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("{", r"labels\.json is not readable as JSON"),
        ('"red"', r"labels\.json must be a list of label words"),
        ('["red", 1]', "must be a list of label words"),
        ('{"words": ["a", "b"]}', "or have one as 'labels'"),
        ('{"labels": ["a", "b"], "prompt": 3}', "'prompt' must be text, got 3"),
        ('["red"]', "two or more label words, all different"),
        ('["red", "red"]', "two or more label words, all different"),
    ],
)
def test_labels_that_do_not_fit_are_named(tmp_path, labels, message):
    own = write_task(tmp_path, make_task())
    (own / "labels.json").write_text(labels)
    with pytest.raises(ValueError, match=message):
        read_text_task(tmp_path, "colours")


def test_a_missing_task_is_told_with_the_nearest(tmp_path):
    write_task(tmp_path, make_task())
    with pytest.raises(ValueError, match="has no task 'colour'; did you mean 'colours'"):
        read_text_task(tmp_path, "colour")
    (tmp_path / "bare").mkdir()
    with pytest.raises(ValueError, match=r"task 'bare' has no file .*labels\.json"):
        read_text_task(tmp_path, "bare")
    with pytest.raises(ValueError, match=r"nowhere' does not exist; it should hold rte/labels"):
        read_text_task(tmp_path / "nowhere", "rte")
    with pytest.raises(ValueError, match="it has no folder with a labels"):
        text_task_files(tmp_path / "bare", "rte")


def test_a_missing_or_doubled_part_is_told(tmp_path):
    own = write_task(tmp_path, make_task())
    write_lines(own / "train.jsonl.gz", [GOOD])
    with pytest.raises(ValueError, match=r"has both .*train\.jsonl and .*train\.jsonl\.gz"):
        read_text_task(tmp_path, "colours")
    for file in own.glob("train*"):
        file.unlink()
    with pytest.raises(ValueError, match=r"has neither .*train\.jsonl nor .*train\.jsonl\.gz"):
        read_text_task(tmp_path, "colours")


def test_a_label_that_is_only_tested_names_the_folder(tmp_path):
    own = write_task(tmp_path, make_task())
    write_lines(own / "train.jsonl", [GOOD])
    with pytest.raises(ValueError, match=r"colours: task 'colours' tests labels .*'green', 'blue'"):
        read_text_task(tmp_path, "colours")
