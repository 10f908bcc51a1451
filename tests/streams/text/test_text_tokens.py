import io
from collections import UserDict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from text_cases import WordTokenizer, word_id

from avalanche_mgem.streams.text import tokenized
from avalanche_mgem.streams.text import tokens as text_tokens

TEXTS = ["one", "two words", "now there are five words", "one two", *["more text"] * 20]


@pytest.fixture(autouse=True)
def nothing_in_memory(monkeypatch):
    monkeypatch.setattr(text_tokens, "_memory", type(text_tokens._memory)())


def rows(tokens):
    return [tokens.row(i)["input_ids"].tolist() for i in range(len(tokens))]


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("max_length", [1, 3, 100])
def test_ids_are_the_tokenizers_cut_at_max_length(tmp_path, on_disk, max_length):
    folder = tmp_path / "cache" if on_disk else None
    for _ in range(2):
        made = tokenized(TEXTS, WordTokenizer(), max_length=max_length, cache_folder=folder)
        assert rows(made) == [[word_id(w) for w in t.split()][:max_length] for t in TEXTS]
        assert made.lengths.tolist() == [min(len(t.split()), max_length) for t in TEXTS]
        row = made.row(2)
        assert row["attention_mask"].tolist() == [1] * min(5, max_length)
        assert {value.dtype for value in row.values()} == {torch.int64}


def test_pairs_reach_the_tokenizer_as_pairs():
    seen = []

    def tokenizer(texts, max_length):
        seen.extend(texts)
        return {"input_ids": [[1, 2]] * len(texts)}

    tokenized([("a", "b"), ("c", "d")], tokenizer, max_length=4)
    assert seen[-2:] == [("a", "b"), ("c", "d")]


def test_truncation_is_asked_for_where_it_is_known():
    seen = []

    def keywords(texts, **given):
        seen.append(given)
        return {"input_ids": [[1]] * len(texts)}

    def named(texts, max_length, truncation=None):
        return keywords(texts, max_length=max_length, truncation=truncation)

    for tokenizer in (keywords, named):
        tokenized(["a"], tokenizer, max_length=7)
    assert seen == [{"max_length": 7, "truncation": True}] * len(seen)


def test_fields_beside_the_ids_are_kept_and_a_missing_mask_is_all_ones():
    def tokenizer(texts, max_length):
        ids = [[5] * len(text) for text in texts]
        return UserDict({"input_ids": ids, "token_type_ids": [[1] * len(row) for row in ids]})

    row = tokenized(["abc", "a"], tokenizer, max_length=2).row(0)
    assert {name: value.tolist() for name, value in row.items()} == {
        "input_ids": [5, 5],
        "attention_mask": [1, 1],
        "token_type_ids": [1, 1],
    }


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_second_time_only_probes_are_tokenised(tmp_path, on_disk):
    sizes = []

    def tokenizer(texts, max_length):
        sizes.append(len(texts))
        return {"input_ids": [[1]] * len(texts)}

    folder = tmp_path if on_disk else None
    for _ in range(3):
        tokenized(TEXTS, tokenizer, max_length=4, cache_folder=folder)
    assert sizes == [8, len(TEXTS), 8, 8]


class Other(WordTokenizer):
    pass


def _renamed(**changes):
    tokenizer = WordTokenizer()
    vars(tokenizer).update(changes)
    return tokenizer


@pytest.mark.parametrize(
    "change",
    [
        {"texts": [*TEXTS[:-1], "changed"]},
        {"texts": TEXTS[::-1]},
        {"texts": [*TEXTS, "longer"]},
        {"max_length": 5},
        {"tokenizer": Other()},
        {"tokenizer": _renamed(name_or_path="other words")},
        {"tokenizer": _renamed(vocab_size=51)},
    ],
)
def test_what_decides_the_result_decides_the_file(tmp_path, change):
    usual = {"texts": TEXTS, "tokenizer": WordTokenizer(), "max_length": 4}
    for arguments in (usual, usual | change, usual):
        texts, tokenizer = arguments["texts"], arguments["tokenizer"]
        max_length = arguments["max_length"]
        tokenized(texts, tokenizer, max_length=max_length, cache_folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_functions_of_one_name_are_told_apart_by_what_they_make(tmp_path):
    def make(shift):
        return lambda texts, max_length: {"input_ids": [[shift + len(text)] for text in texts]}

    for shift in (0, 1):
        made = tokenized(TEXTS, make(shift), max_length=4, cache_folder=tmp_path)
        assert rows(made) == [[shift + len(text)] for text in TEXTS]


def _with_wrong_lengths(content):
    with np.load(io.BytesIO(content)) as stored:
        arrays = {**stored, "lengths": stored["lengths"] + 1}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _with_a_text_less(content):
    with np.load(io.BytesIO(content)) as stored:
        lengths = stored["lengths"][:-1]
        fields = {name: stored[name][: lengths.sum()] for name in stored if name != "lengths"}
    buffer = io.BytesIO()
    np.savez(buffer, lengths=lengths, **fields)
    return buffer.getvalue()


def _array(content):
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


def _flipped(content):
    middle = len(content) // 3
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "spoil",
    [lambda c: c[:50], lambda c: b"", _flipped, _array, _with_wrong_lengths, _with_a_text_less],
)
def test_a_damaged_file_is_made_anew(tmp_path, spoil):
    first = tokenized(TEXTS, WordTokenizer(), max_length=4, cache_folder=tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(spoil(whole))
    again = tokenized(TEXTS, WordTokenizer(), max_length=4, cache_folder=tmp_path)
    assert rows(again) == rows(first)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    assert rows(text_tokens._read(file, len(TEXTS))) == rows(first)


def test_many_may_fill_a_folder_at_once(tmp_path):
    def make(_):
        return rows(tokenized(TEXTS, WordTokenizer(), max_length=4, cache_folder=tmp_path))

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(make, range(8)))
    assert all(result == results[0] for result in results)
    assert len(list(tmp_path.iterdir())) == 1


def test_memory_keeps_the_latest_only(monkeypatch):
    monkeypatch.setattr(text_tokens, "_IN_MEMORY", 2)
    for max_length in (1, 2, 1, 3):
        tokenized(TEXTS, WordTokenizer(), max_length=max_length)
    kept = list(text_tokens._memory.values())
    assert [int(tokens.lengths.max()) for tokens in kept] == [1, 3]


def _returning(made):
    return lambda texts, max_length: made(texts)


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        ("words", "tokenizer must be callable, got str"),
        (_returning(lambda t: [[1]]), "mapping with 'input_ids', got list"),
        (_returning(lambda t: {"ids": [[1]]}), "mapping with 'input_ids', got ids"),
        (_returning(lambda t: {"input_ids": [[1]]}), "each of 3 texts, but 'input_ids' has 1 of"),
        (_returning(lambda t: {"input_ids": [1] * 3}), "has 3 of int"),
        (_returning(lambda t: {"input_ids": [["a"]] * 3}), "whole numbers, but 'input_ids' holds"),
        (_returning(lambda t: {"input_ids": [[0.5]] * 3}), "'input_ids' holds float64"),
        (
            _returning(lambda t: {"input_ids": [[1]] * 3, "attention_mask": [[1, 1]] * 3}),
            "as many 'attention_mask' as 'input_ids'",
        ),
        (_returning(lambda t: {"input_ids": [[1], [], [1]]}), "makes no token of the text 'two"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused(tokenizer, message):
    with pytest.raises(ValueError, match=message):
        tokenized(TEXTS[:3], tokenizer, max_length=4)


def test_arguments_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="max_length must be a whole number >= 1, got 0"):
        tokenized(TEXTS, WordTokenizer(), max_length=0)
    with pytest.raises(ValueError, match="texts must be one or more"):
        tokenized([], WordTokenizer(), max_length=4)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ValueError, match=r"cache_folder='.*file' cannot be used"):
        tokenized(TEXTS, WordTokenizer(), max_length=4, cache_folder=file)
