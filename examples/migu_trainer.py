"""MIGU under the Hugging Face Trainer: two tasks in sequence, the second with masked rows.

python examples/migu_trainer.py
"""

import torch
from torch.utils.data import Dataset
from transformers import (
    RobertaConfig,
    RobertaForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from avalanche_mgem.huggingface import MIGUCallback

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


class Share(TrainerCallback):
    """Says after each training how many of the gated rows the last step held still."""

    def __init__(self, migu: MIGUCallback) -> None:
        self.migu = migu

    def on_train_end(self, args, state, control, **kwargs) -> None:
        kept = list((self.migu.last_mask or {}).values())
        rows, masked = sum(map(len, kept)), sum(int((~mask).sum()) for mask in kept)
        print(f"rows held still in the last step: {masked} of {rows}" if kept else "all rows free")


def main() -> None:
    torch.manual_seed(0)
    model = RobertaForSequenceClassification(
        RobertaConfig(
            vocab_size=WORDS,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=LENGTH + 2,
        )
    )
    arguments = TrainingArguments(
        output_dir="trained",
        num_train_epochs=3,
        per_device_train_batch_size=16,
        learning_rate=3e-3,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    migu = MIGUCallback(mask_fraction=0.7, freeze="update")
    tasks = [Task(first_word=4), Task(first_word=8)]
    for task in tasks:  # one callback for all trainers: each train() is a task
        trainer = Trainer(model, arguments, train_dataset=task, callbacks=[migu, Share(migu)])
        trainer.train()
        for number, earlier in enumerate(tasks[: migu.tasks]):
            answers = trainer.predict(earlier).predictions.argmax(-1)
            print(f"accuracy on task {number}: {(answers == earlier.labels.numpy()).mean():.2f}")


if __name__ == "__main__":
    main()
