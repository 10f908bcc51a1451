"""MIGU, mGEM and hybrid magnitude under transformers' Trainer in two processes, and in one."""

import os
import tempfile
from functools import partial

import torch
import transformers
from accelerate.state import AcceleratorState
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments

from avalanche_mgem.huggingface import HybridMagnitudeCallback, MGEMCallback, MIGUCallback
from avalanche_mgem.model.distributed import n_processes, values_of_all

WHOLE_BATCH = 8


def make_model():
    """A tiny RoBERTa without dropout."""
    torch.manual_seed(5)
    config = transformers.RobertaConfig(
        vocab_size=40,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=10,
        max_position_embeddings=20,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=3,
    )
    return transformers.RobertaForSequenceClassification(config)


def make_task(size=32, length=7):
    """Sequences of one length, their labels told by their first token."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 40, (size, length), generator=generator)
    return [{"input_ids": i, "labels": int(i[0]) % 3} for i in ids]


class InOrder(Trainer):
    """Takes the samples in their order, which arguments of older Trainers cannot ask for."""

    def _get_train_sampler(self, *dataset):
        return SequentialSampler(self.train_dataset)


def trained(folder, make_callback, *, accumulated=1):
    """Train two tasks; return the parameters, and the last mask, the memory or what trains."""
    model, callback = make_model(), make_callback()
    options = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=WHOLE_BATCH // n_processes() // accumulated,
        gradient_accumulation_steps=accumulated,
        max_steps=4,
        optim="sgd",  # Adam would blow the rounding of gradients that are zero up to steps
        learning_rate=0.5,
        weight_decay=0.1,
        # A mean over samples, which takes no number of tokens, would count twice in two processes.
        average_tokens_across_devices=False,
        lr_scheduler_type="constant",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    for _ in range(2):
        InOrder(model=model, args=options, train_dataset=make_task(), callbacks=[callback]).train()
    if isinstance(callback, MGEMCallback):
        shown = [group.batch["input_ids"].tolist() for group in callback.memory.closed_groups()]
    elif isinstance(callback, HybridMagnitudeCallback):
        shown = list(callback.last_decision.trained)
    else:
        shown = {name: mask.tolist() for name, mask in callback.last_mask.items()}
    return nn.utils.parameters_to_vector(model.parameters()).detach(), shown


# A memory that divides among two processes; a projection whose corners rounding does not move.
MGEM = partial(MGEMCallback, 8, 0.5, seed=0)
CASES = {
    "gradient": (partial(MIGUCallback, 0.4), {}),
    "update": (partial(MIGUCallback, 0.4, freeze="update"), {}),
    "accumulated": (partial(MIGUCallback, 0.4), {"accumulated": 2}),
    "mgem": (MGEM, {}),
    "mgem, update": (partial(MGEM, memory_groups=2, restrict="update"), {}),
    "frozen": (partial(HybridMagnitudeCallback, "frozen"), {"accumulated": 2}),
    "decay": (partial(HybridMagnitudeCallback, "decay"), {}),
    "adaptive": (partial(HybridMagnitudeCallback, probe_batches=4, seed=0), {}),
    "mgem, auto": (partial(MGEMCallback, 8, "auto", seed=0), {"accumulated": 2}),
}


def run(case):
    """The case in a folder of its own, which is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        make_callback, options = case
        return trained(folder, make_callback, **options)


def alone(rank):
    """All in one process, of the first; the state that accelerate keeps is gone afterwards."""
    found = {name: run(case) for name, case in CASES.items()} if rank == 0 else {}
    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}  # as torchrun does
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    return found


def both(alone):
    """Each case in two processes, beside that of one."""
    results = {}
    for name, case in CASES.items():
        vectors, shown = zip(*values_of_all(run(case)), strict=True)
        results[name] = {"same": torch.equal(*vectors), "same_shown": shown[0] == shown[1]}
        if name in alone:
            vector, own = alone[name]
            results[name]["distance"] = float((vectors[0] - vector).norm() / vector.norm())
            results[name]["shown"] = own == shown[0]
    results["type"] = AcceleratorState().distributed_type.value
    return results
