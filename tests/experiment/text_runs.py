"""A folder of tiny tasks and tiny models of transformers, as files, for comparisons on text."""

import torch
from huggingface.answer_cases import N_WORDS, make_llama, make_t5, make_task, make_tokenizer
from text_cases import write_task
from transformers import BertConfig, BertModel

from avalanche_mgem.experiment import TextModelFactory, TextStream, Training

TASKS = {"colours": ("red", "green"), "animals": ("cat", "big dog"), "sizes": ("small", "one")}
TRAINING = Training(
    memory=8,
    batch_size=8,
    eval_batch_size=16,
    optimizer="adamw",
    learning_rate=0.01,
    length_buckets=2,
)


def make_bert():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=N_WORDS,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=40,
    )
    return BertModel(config)


MODELS = {"bert": make_bert, "t5": make_t5, "llama": make_llama}


def write_all(folder):
    """Write the tasks into folder/tasks, and each model with its tokenizer into a folder."""
    for name, words in TASKS.items():
        write_task(folder / "tasks", make_task(name, words, n_train=16, n_test=8))
    for name, make in MODELS.items():
        make().save_pretrained(folder / name)
        make_tokenizer().save_pretrained(folder / name)
    return folder


def stream_and_model(place, name="bert", **settings):
    """A stream of three tasks, and the factory of one of the models."""
    form = {"bert": "classification", "t5": "text-to-text", "llama": "causal"}[name]
    labels = {} if name == "bert" else {"task_labels": False, "shared_labels": True}
    path = str(place / name)
    stream = TextStream(
        **{
            "tasks": tuple(TASKS),
            "tokenizer": path,
            "folder": str(place / "tasks"),
            "form": form,
            "max_length": 32,
            **labels,
            **settings,
        }
    )
    return stream, TextModelFactory(path, form=form)
