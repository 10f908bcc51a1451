"""A tiny model and short trainings under transformers' Trainer."""

import os

import pytest
import torch
import transformers
from accelerate.state import AcceleratorState
from transformers import Trainer, TrainingArguments

# The Trainer of transformers 4.47 itself calls what torch 2.5 warns of.
KNOWN_WARNINGS = [
    pytest.mark.filterwarnings("ignore:You are using `torch.load`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.cpu.amp.autocast:FutureWarning"),
]


@pytest.fixture(autouse=True)
def own_environment():
    """Arguments of a Trainer set variables (precision, compiling) that all after it read."""
    before = dict(os.environ)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    for name in os.environ.keys() - before.keys():
        del os.environ[name]


def make_model(*, hidden_dropout_prob=0.0, **settings):
    torch.manual_seed(5)
    config = transformers.RobertaConfig(
        vocab_size=40,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=10,
        max_position_embeddings=20,
        hidden_dropout_prob=hidden_dropout_prob,
        attention_probs_dropout_prob=0.0,
        num_labels=3,
        **settings,
    )
    return transformers.RobertaForSequenceClassification(config)


def make_task(seed=0, size=16, length=7):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 40, (size, length), generator=generator)
    mask = torch.arange(length) < torch.randint(3, length + 1, (size, 1), generator=generator)
    ids[~mask] = 1
    return [
        {"input_ids": i, "attention_mask": m.long(), "labels": int(i[0]) % 3}
        for i, m in zip(ids, mask, strict=True)
    ]


def train(folder, model, task, *callbacks, trainer=Trainer, collate=None, resume=None, **settings):
    settings = {"max_steps": 4, "save_strategy": "no", "learning_rate": 0.01, **settings}
    settings.setdefault("weight_decay", 0.1)
    settings.setdefault("per_device_train_batch_size", 4)
    arguments = TrainingArguments(
        output_dir=str(folder),
        lr_scheduler_type="constant",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        logging_strategy="no",
        **settings,
    )
    made = trainer(
        model=model,
        args=arguments,
        data_collator=collate,
        train_dataset=task,
        eval_dataset=task,
        callbacks=[*callbacks],
    )
    made.train(resume_from_checkpoint=resume)
    return made


def hooks_of(model):
    return sum(
        len(hooks)
        for module in model.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks)
    )


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))
