"""Streams of plain texts, domain after domain."""

import gzip
import json

import pytest
from text_cases import WordTokenizer, batches_of, word_id

from avalanche_mgem.streams.text import plain_text_stream

TEXTS = {
    "news": (["a b c", "d", "e f"], ["g h", "i"]),
    "law": (["j k", "l m n"], ["o", "p q r"]),
}


def rows(experience):
    (batch,) = batches_of(experience.dataset, size=99)
    tokens = [
        ids[mask == 1].tolist()
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    return tokens, batch["labels"].tolist(), batch["task_labels"].tolist()


def ids(texts):
    return [[word_id(word) for word in text.split()] for text in texts]


def test_a_domain_is_an_experience_of_one_class():
    stream = plain_text_stream(TEXTS, tokenizer=WordTokenizer())
    assert [e.task_name for e in stream.train_stream] == ["news", "law"]
    assert rows(stream.train_stream[0]) == (ids(TEXTS["news"][0]), [0] * 3, [0] * 3)
    by_length = sorted(TEXTS["law"][1], key=len)
    assert rows(stream.test_stream[1]) == (ids(by_length), [0] * 2, [1] * 2)
    assert [e.classes_in_this_experience for e in stream.train_stream] == [[0], [0]]
    plain = plain_text_stream(TEXTS, tokenizer=WordTokenizer(), task_labels=False, names=["law"])
    assert rows(plain.train_stream[0]) == (ids(TEXTS["law"][0]), [0] * 2, [0] * 2)


def test_a_folder_is_read_as_the_texts_themselves(tmp_path):
    for name, own in TEXTS.items():
        (tmp_path / name).mkdir()
        for part, texts in zip(("train", "test"), own, strict=True):
            lines = "\n\n".join(texts) + "\n"
            objects = "".join(json.dumps({"text": text, "id": 1}) + "\n" for text in texts)
            if name == "news":
                (tmp_path / name / f"{part}.txt").write_text(lines)
            else:
                (tmp_path / name / f"{part}.jsonl.gz").write_bytes(gzip.compress(objects.encode()))
    read = plain_text_stream(tmp_path, tokenizer=WordTokenizer(), names=["news", "law"])
    given = plain_text_stream(TEXTS, tokenizer=WordTokenizer())
    for one, other in zip(
        [*read.train_stream, *read.test_stream],
        [*given.train_stream, *given.test_stream],
        strict=True,
    ):
        assert rows(one) == rows(other)
    in_order = plain_text_stream(str(tmp_path), tokenizer=WordTokenizer())
    assert [e.task_name for e in in_order.train_stream] == ["law", "news"]


def test_texts_are_drawn_by_seed_and_cut():
    texts = {"a": ([f"{i} x y" for i in range(20)], ["t"])}

    def drawn(count, seed):
        stream = plain_text_stream(
            texts, tokenizer=WordTokenizer(), train_per_domain=count, seed=seed, max_length=2
        )
        return rows(stream.train_stream[0])[0]

    assert drawn(5, 0) == drawn(9, 0)[:5]
    assert drawn(5, 0) != drawn(5, 1)
    assert {len(row) for row in drawn(5, 0)} == {2}
    assert len(drawn(99, 0)) == 20


def test_what_is_no_text_is_refused(tmp_path):
    def stream(domains, **settings):
        return plain_text_stream(domains, tokenizer=WordTokenizer(), **settings)

    with pytest.raises(ValueError, match="domains must be one or more, got none in"):
        stream(tmp_path)
    with pytest.raises(ValueError, match="unknown domain 'new'; did you mean 'news'"):
        stream(TEXTS, names=["new"])
    with pytest.raises(ValueError, match="domain 'a' has no test texts"):
        stream({"a": (["x"], [])})
    with pytest.raises(ValueError, match=r"domains: 'a' must be \(training texts, test texts\)"):
        stream({"a": ["x", "y"]})
    with pytest.raises(ValueError, match="train_per_domain must be a whole number"):
        stream(TEXTS, train_per_domain=0)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "train.jsonl").write_text('{"text": "x"}\n{"words": 1}\n')
    with pytest.raises(ValueError, match=r"train.jsonl, line 2: must be an object with 'text'"):
        stream(tmp_path)
    (tmp_path / "a" / "train.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(ValueError, match=r"domain 'a' must have one of test\{.txt,"):
        stream(tmp_path)
