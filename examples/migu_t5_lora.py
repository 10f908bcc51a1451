"""LoRA with MIGU on T5, which answers in words: two tasks in sequence, judged by generation.

python examples/migu_t5_lora.py                             a tiny T5 of random weights, no download
python examples/migu_t5_lora.py --model google-t5/t5-small  or any other T5, by name or folder
"""

import argparse
from itertools import product
from typing import Any

import torch
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from avalanche_mgem import MIGUPlugin
from avalanche_mgem.evaluation import AccuracyMatrix
from avalanche_mgem.huggingface import (
    LoRAPlugin,
    TokenLoss,
    label_words_of,
    load_pretrained,
    load_tokenizer,
    text_to_text,
)
from avalanche_mgem.streams.text import TextSample, TextTask, text_stream

OPENINGS = ("today we saw", "once there was", "she told us of", "they wrote about", "look at")
ENDINGS = ("in the garden", "by the river", "near the old house", "on the hill")
TOPICS = {
    "nature": {
        "animal": ("a cat", "a horse", "a bird"),
        "plant": ("a rose", "a tree", "some moss"),
    },
    "home": {
        "food": ("warm bread", "a soup", "an apple"),
        "tool": ("a saw", "a hammer", "a nail"),
    },
}


class NoLog:
    """Avalanche warns where there is no logger at all."""

    def log_metrics(self, metric_values: object) -> None: ...


def make_task(name: str, topics: dict[str, tuple[str, ...]]) -> TextTask:
    """Return a task of sentences about one of two topics; the test has endings of its own."""
    train, test = [], []
    for label, things in enumerate(topics.values()):
        for opening, thing, ending in product(OPENINGS, things, ENDINGS):
            part = test if ending == ENDINGS[-1] else train
            part.append(TextSample(f"{opening} {thing} {ending}", label))
    return TextTask(name, tuple(topics), train, test, "What is the text about ?")


def tiny_t5(tasks: list[TextTask]) -> tuple[Any, Any]:
    """Return a T5 of random weights, and a tokenizer of the words that the tasks have."""
    texts = [sample.text for task in tasks for sample in task.train] + list(ENDINGS)
    labels = [word for task in tasks for word in task.label_words]
    words = " ".join(["What is the text about ? Options : , Answer", *labels, *texts]).split()
    ids = {word: i for i, word in enumerate(dict.fromkeys(["<pad>", "</s>", "<unk>", *words]))}
    splitter = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    splitter.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=splitter, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    config = T5Config(
        vocab_size=len(ids),
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    return T5ForConditionalGeneration(config), tokenizer


def main(name: str | None = None) -> None:
    torch.manual_seed(0)
    tasks = [make_task(task, topics) for task, topics in TOPICS.items()]
    if name is None:
        t5, tokenizer = tiny_t5(tasks)
    else:
        t5, tokenizer = load_pretrained(name, "AutoModelForSeq2SeqLM"), load_tokenizer(name)
    stream = text_stream(tasks, tokenizer=tokenizer, form="text-to-text")
    model = text_to_text(t5, tokenizer, label_words_of(stream))
    migu = MIGUPlugin(0.7, freeze="update", ignore_padding=True)
    layers = ["q", "k", "v", "o", "wi", "wo"]
    accuracy = AccuracyMatrix()
    strategy = Naive(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=3e-3 if name is None else 1e-3),
        criterion=TokenLoss(),
        train_mb_size=10,
        eval_mb_size=30,
        train_epochs=12,
        plugins=[LoRAPlugin(rank=8, alpha=32, dropout=0.0, target_modules=layers), migu],
        evaluator=EvaluationPlugin(accuracy, loggers=[NoLog()]),
    )
    for experience in stream.train_stream:
        strategy.train(experience)
        strategy.eval(stream.test_stream)
    masks = migu.last_mask or {}
    held = sum(int((~mask).sum()) for mask in masks.values())
    print(f"rows held still in the last step: {held} of {sum(map(len, masks.values()))}")
    print("accuracy by generation, a row after each task:")
    print(accuracy.result("test").round(2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a T5 by its name on the hub or its folder")
    main(parser.parse_args().model)
