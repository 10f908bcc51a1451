"""Adapters of peft that are not plain LoRA: gated as far as they are LoRA, else refused by name."""

import peft
import pytest
import transformers

from avalanche_mgem.model.layers import find_gated_layers

TARGETS = ["q_proj", "v_proj"]
REFUSED = {
    "IA3": peft.IA3Config(target_modules=TARGETS, feedforward_modules=[]),
    "VeRA": peft.VeraConfig(target_modules=TARGETS, r=2),
    "OFT": peft.OFTConfig(target_modules=TARGETS, oft_block_size=4),
    "LoHa": peft.LoHaConfig(target_modules=TARGETS, r=2),
    "LoKr": peft.LoKrConfig(target_modules=TARGETS, r=2),
    "AdaLoRA": peft.AdaLoraConfig(target_modules=TARGETS, total_step=10),
    "HRA": peft.HRAConfig(target_modules=TARGETS, r=2),
    "FourierFT": peft.FourierFTConfig(target_modules=TARGETS, n_frequency=8),
    "prompt tuning": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
}
if hasattr(peft, "MissConfig"):
    REFUSED["MiSS"] = peft.MissConfig(target_modules=TARGETS, r=2)


def llama():
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
    )
    return transformers.LlamaForCausalLM(config)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", REFUSED)
def test_other_kinds_are_refused_by_name(kind):
    model = peft.get_peft_model(llama(), REFUSED[kind])
    with pytest.raises(ValueError, match=f"its adapters are {kind}.*LoRA"):
        find_gated_layers(model)
