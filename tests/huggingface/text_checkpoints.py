"""A tiny text model with adapters, to be saved and continued."""

import transformers
from checkpoint_runs import Run
from text_cases import VOCABULARY, WordTokenizer, make_task

from avalanche_mgem.experiment import Training
from avalanche_mgem.huggingface import text_classifier
from avalanche_mgem.streams.text import text_stream

TASKS = {"colours": ("red", "green"), "sizes": ("big", "small"), "moods": ("glad", "sad")}
TRAINING = Training(memory=8, batch_size=8, optimizer="adamw", learning_rate=0.01, length_buckets=2)


def stream(seed):
    tasks = [make_task(name, words, n_train=16, n_test=6) for name, words in TASKS.items()]
    return text_stream(tasks, tokenizer=WordTokenizer(), task_labels=True)


def model(shape, n_classes):
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
    )
    return text_classifier(transformers.BertModel(config), heads="multi")


def make(seed=0):
    return Run("inclora+migu", seed=seed, stream=stream, model=model, training=TRAINING)
