"""mGEM under the Hugging Face Trainer, on LoRA: two tasks in sequence, with a memory of the first.

A row of the memory is as long as the adapters, 4,194 numbers here, heads among them.

python examples/mgem_trainer_lora.py
"""

import peft
import torch
from torch.utils.data import Dataset
from transformers import (
    RobertaConfig,
    RobertaForSequenceClassification,
    Trainer,
    TrainingArguments,
)

from avalanche_mgem.huggingface import MGEMCallback

WORDS, LENGTH = 60, 12


class Task(Dataset):
    """Texts of random words, with one among them that says which of two labels is right."""

    def __init__(self, first_word: int, size: int = 256) -> None:
        generator = torch.Generator().manual_seed(first_word)
        self.labels = torch.arange(size) % 2
        self.texts = torch.randint(20, WORDS, (size, LENGTH), generator=generator)
        places = torch.randint(LENGTH, (size,), generator=generator)
        self.texts[torch.arange(size), places] = first_word + self.labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.texts[index], "labels": self.labels[index]}


def make_model() -> torch.nn.Module:
    torch.manual_seed(0)
    model = RobertaForSequenceClassification(
        RobertaConfig(
            vocab_size=WORDS,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=LENGTH + 2,
            initializer_range=0.3,  # nobody has pre-trained it
        )
    )
    layers = ["query", "value", "intermediate.dense", "output.dense"]
    config = peft.LoraConfig(r=8, target_modules=layers, modules_to_save=["classifier"])
    return peft.get_peft_model(model, config)


def main() -> None:
    arguments = TrainingArguments(
        output_dir="trained",
        num_train_epochs=6,
        per_device_train_batch_size=16,
        learning_rate=1e-2,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    model, tasks = make_model(), [Task(first_word=4), Task(first_word=8)]
    # The step of AdamW is restricted, and not only its gradient.
    mgem = MGEMCallback(32, 0.5, memory_groups=2, restrict="update", seed=0)
    for task in tasks:  # one callback for all trainers: each train() is a task
        trainer = Trainer(model, arguments, train_dataset=task, callbacks=[mgem])
        trainer.train()
        for number, earlier in enumerate(tasks[: mgem.tasks]):
            answers = trainer.predict(earlier).predictions.argmax(-1)
            print(f"accuracy on task {number}: {(answers == earlier.labels.numpy()).mean():.2f}")
    length = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(f"{len(mgem.memory.closed_groups())} memory rows of {length} numbers")


if __name__ == "__main__":
    main()
