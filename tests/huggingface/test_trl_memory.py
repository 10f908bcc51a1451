"""mGEM under TRL's SFTTrainer, where it is installed: pip install trl."""

import pytest
import torch
from answer_cases import make_llama, make_tokenizer
from trainer_runs import own_environment  # noqa: F401  # of every test here

from avalanche_mgem.huggingface import MGEMCallback

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
# What trl and datasets warn of themselves is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_two_tasks_of_supervised_fine_tuning(tmp_path):
    model, mgem = make_llama(), MGEMCallback(4, 0.5, memory_groups=2, seed=0)
    for number in range(2):
        generator = torch.Generator().manual_seed(number)
        ids = torch.randint(3, 20, (12, 6), generator=generator)
        arguments = trl.SFTConfig(
            output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=4, optim="sgd",
            learning_rate=0.1, save_strategy="no", report_to="none", disable_tqdm=True,
            use_cpu=True, bf16=False, gradient_checkpointing=False,
            dataset_kwargs={"skip_prepare_dataset": True},
        )  # fmt: skip
        trl.SFTTrainer(
            model=model,
            args=arguments,
            # With a name of its own: datasets would pickle the table to make one.
            train_dataset=datasets.Dataset(
                datasets.table.InMemoryTable.from_pydict({"input_ids": ids.tolist()}),
                fingerprint=f"task{number}",
            ),
            processing_class=make_tokenizer(),
            callbacks=[mgem],
        ).train()
    assert (mgem.tasks, mgem.steps) == (2, 6)
    assert mgem.last_projection is not None
    batch = mgem.memory.closed_groups()[0].batch
    assert batch["input_ids"].shape == (2, 6)
    expected = model.eval()(**{k: v for k, v in batch.items() if k != "position_ids"}).loss
    assert expected.isfinite()
