"""Tiny text tasks, a tokenizer of whole words, and a model, for the tests of text streams."""

import gzip
import json
import zlib

import torch
from avalanche.models import MultiHeadClassifier, MultiTaskModule
from torch import nn

from avalanche_mgem.streams.text import TextSample, TextTask

VOCABULARY = 50


class WordTokenizer:
    """A word is an id; the id 0 is padding. Counts how often it is called."""

    name_or_path = "words"
    vocab_size = VOCABULARY
    pad_token_id = 0
    padding_side = "right"

    def __init__(self):
        self.calls = 0

    def __call__(self, texts, max_length):
        self.calls += 1
        words = [" ".join([text] if isinstance(text, str) else text).split() for text in texts]
        ids = [[word_id(word) for word in row][:max_length] for row in words]
        return {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}


def word_id(word):
    return 1 + zlib.crc32(word.encode()) % (VOCABULARY - 1)


def make_task(name="colours", words=("red", "green", "blue"), n_train=30, n_test=12, pairs=False):
    """A task whose texts name their label, at different lengths."""

    def samples(count, start):
        rows = []
        for i in range(start, start + count):
            label = i % len(words)
            text = " ".join([words[label], *["filler"] * (i * 7 % 11), str(i)])
            rows.append(TextSample(text, label, f"the second {i}" if pairs else None))
        return rows

    return TextTask(name, tuple(words), samples(n_train, 0), samples(n_test, 1000))


def write_task(folder, task, *, compressed=False, labels=None):
    """Write a task in the layout of a folder; return the task's own folder."""
    own = folder / task.name
    own.mkdir(parents=True)
    (own / "labels.json").write_text(json.dumps(labels or list(task.label_words)))
    for part in ("train", "test"):
        lines = [
            {"text": s.text, "label": s.label}
            | ({} if s.text_pair is None else {"text_pair": s.text_pair})
            for s in getattr(task, part)
        ]
        write_lines(own / f"{part}.jsonl{'.gz' if compressed else ''}", map(json.dumps, lines))
    return own


def write_lines(file, lines):
    content = "".join(f"{line}\n" for line in lines).encode()
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)


class TextModel(nn.Module):
    """Mean of embeddings and a linear head; takes the features of a batch."""

    def __init__(self, n_classes=3):
        super().__init__()
        self.embedding = nn.EmbeddingBag(VOCABULARY, 16, mode="sum")
        self.head = nn.Linear(16, n_classes)

    def forward(self, features):
        return self.head(pooled(self.embedding, features))


class TextHeads(MultiTaskModule):
    """The same with a head for each task."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.EmbeddingBag(VOCABULARY, 16, mode="sum")
        self.heads = MultiHeadClassifier(16, initial_out_features=3)

    def forward(self, features, task_labels):
        return self.heads(pooled(self.embedding, features), task_labels)


def pooled(embedding, features):
    mask = features["attention_mask"].float()
    total = embedding(features["input_ids"], per_sample_weights=mask)
    return total / mask.sum(1, keepdim=True)


def batches_of(dataset, size=4):
    """The data set's batches, in its order."""
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=size,
        collate_fn=dataset.collate_fn,
        generator=torch.Generator().manual_seed(0),
    )
    return list(loader)
