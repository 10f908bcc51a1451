"""How much of what trains is gated under the Trainer: mixtures of experts, whole and with LoRA."""

from pathlib import Path

import peft
import pytest
from mixtures import NEEDS_EXPERTS, make_batch, make_mixture
from trainer_runs import own_environment, train  # noqa: F401  # of every test here

from avalanche_mgem.huggingface import MIGUCallback

TABLE = Path(__file__).parents[2] / "docs" / "trainer.md"
NAMES = {
    "mixtral": "Mixtral",
    "qwen3": "Qwen3-MoE",
    "olmoe": "OLMoE",
    "gpt-oss": "GPT-OSS",
    "deepseek": "DeepSeek-V3",
}
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
pytestmark = [
    NEEDS_EXPERTS,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # peft's own: it does not count parameters among what its patterns match.
    pytest.mark.filterwarnings(
        "ignore:The following (rank|alpha)_pattern keys did not:RuntimeWarning"
    ),
    pytest.mark.skipif(
        "target_parameters" not in peft.LoraConfig.__dataclass_fields__,
        reason="this peft knows LoRA of modules only",
    ),
]


def adapted(model):
    """LoRA on all linear layers and on the experts' parameters."""
    config = peft.LoraConfig(r=2, target_modules="all-linear", target_parameters=EXPERTS)
    model = peft.get_peft_model(model, config)
    assert any("experts" in name and p.requires_grad for name, p in model.named_parameters())
    return model


def share(tmp_path, name, lora):
    """Of the trainable parameters, in the account of a step that was masked."""
    model = make_mixture(name, num_hidden_layers=6)  # else the tiny vocabulary is a tenth of it
    model = adapted(model) if lora else model
    ids = [make_batch(i)["input_ids"][0] for i in range(8)]
    migu = MIGUCallback(0.5, skip_tasks=0)
    task = [{"input_ids": each, "labels": each} for each in ids]
    train(tmp_path, model, task, migu, max_steps=1)
    assert any(not mask.all() for mask in migu.last_mask.values())
    return migu.last_account.share


@pytest.mark.parametrize("lora", [False, True], ids=["full", "LoRA"])
@pytest.mark.parametrize("name", NAMES)
def test_nine_tenths_of_what_trains_are_gated(tmp_path, name, lora):
    """As the table in the documentation says; warnings of what is left out are errors here."""
    found = share(tmp_path, name, lora)
    assert found >= 0.9
    line = next(
        x
        for x in TABLE.read_text(encoding="utf-8").splitlines()
        if x.startswith(f"| {NAMES[name]} |")
    )
    shown = float(line.split("|")[2 + lora].strip().rstrip("%")) / 100
    assert found == pytest.approx(shown, abs=0.02)  # what configurations default to may change
