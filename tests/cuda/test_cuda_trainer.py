"""MIGU under transformers' Trainer on a GPU."""

import copy

import pytest
import torch
import transformers
from accelerate.state import AcceleratorState
from cuda_cases import DEVICE, needs_cuda
from transformers import Trainer, TrainerCallback, TrainingArguments

from avalanche_mgem.huggingface import MIGUCallback

pytestmark = [pytest.mark.cuda, needs_cuda]


@pytest.fixture(autouse=True)
def own_state():
    """Trainers share a state that is made once."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


class Watch(TrainerCallback):
    """Counts the rows that were masked and those of them that moved."""

    def __init__(self, migu):
        self.migu, self.masked, self.moved = migu, 0, 0

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.before = copy.deepcopy(model.state_dict())

    def on_optimizer_step(self, args, state, control, model, **kwargs):
        for name, kept in self.migu.last_mask.items():
            weight = f"{name}.weight"
            assert kept.device.type == DEVICE
            moved = (model.state_dict()[weight] != self.before[weight]).any(1)
            self.masked += int((~kept).sum())
            self.moved += int((moved & ~kept).sum())


@pytest.mark.parametrize("half", ["none", "bf16", "fp16"])
def test_masked_rows_stay(tmp_path, half):
    torch.manual_seed(0)
    config = transformers.RobertaConfig(
        vocab_size=40,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=10,
        max_position_embeddings=20,
        num_labels=3,
    )
    model = transformers.RobertaForSequenceClassification(config)
    task = [{"input_ids": torch.randint(2, 40, (6,)), "labels": label % 3} for label in range(16)]
    migu = MIGUCallback(0.4, skip_tasks=0, freeze="update")
    watch = Watch(migu)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        max_steps=4,
        learning_rate=0.01,
        weight_decay=0.1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=DEVICE == "cpu",
        **({} if half == "none" else {half: True}),
    )
    Trainer(model=model, args=arguments, train_dataset=task, callbacks=[migu, watch]).train()
    assert watch.masked > 0
    assert watch.moved == 0
    assert all(p.isfinite().all() for p in model.parameters())
