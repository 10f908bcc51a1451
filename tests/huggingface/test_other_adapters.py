"""Adapters of peft that are not plain LoRA: gated as far as they are LoRA, else refused by name."""

import inspect

import peft
import pytest
import torch
import transformers
from tiny import domain_stream, make_strategy

from avalanche_mgem.huggingface import LoRAPlugin
from avalanche_mgem.model.gate import RowGate
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


# Options of peft's LoRA, and how many weights (and biases) are gated by them.
GATED = {
    "plain": ({}, 4),
    "rslora": ({"use_rslora": True}, 4),
    "ranks": ({"rank_pattern": {"v_proj": 1}, "alpha_pattern": {"v_proj": 3}}, 4),
    "one block": ({"layers_to_transform": [0]}, 4),
    "excluded": (
        {"target_modules": "all-linear", "exclude_modules": ["gate_proj", "up_proj", "down_proj"]},
        8,
    ),
    "saved modules": ({"modules_to_save": ["up_proj", "norm"]}, 5),
    "tokens": ({"trainable_token_indices": [1, 2]}, 4),
    "embeddings": ({"target_modules": ["q_proj", "embed_tokens"]}, 2),
    "orthogonal": ({"init_lora_weights": "orthogonal"}, 4),
    "biases": ({"lora_bias": True}, 6),
}


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


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ungated", ["train", "freeze"])
@pytest.mark.parametrize("option", GATED)
def test_options_of_lora_are_gated_to_the_bit(option, ungated):
    options, n_gated = GATED[option]
    if unknown := options.keys() - inspect.signature(peft.LoraConfig).parameters.keys():
        pytest.skip(f"peft has no {unknown}")
    torch.manual_seed(0)
    model = peft.get_peft_model(
        llama(), peft.LoraConfig(**{"r": 2, "target_modules": TARGETS, **options})
    )
    gate = RowGate(0.5, freeze="update", ungated=ungated)
    gate.find(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        ids = torch.randint(1, 40, (2, 6))
        gate.open(model)
        loss = model(input_ids=ids, labels=ids).loss
        gate.close()
        loss.backward()
        gate.mask(model)
        gate.hold(model, optimizer)
        optimizer.step()
        gate.release()
        held = list(gate.held_rows(model))
        gate.reset()
        optimizer.zero_grad()
    now = dict(model.named_parameters())
    biases = sum(len(layer.biases) for layer in find_gated_layers(model))
    assert len(held) + biases == n_gated
    for name, (dim,), rows in held:
        moved = (now[name].detach() != before[name]).movedim(dim, 0).flatten(1).any(1)
        assert torch.equal(moved, ~rows)
    others = {n for n, p in now.items() if p.requires_grad} - {name for name, *_ in held}
    free = {name for name in others if not torch.equal(now[name], before[name])}
    assert not free if ungated == "freeze" else free == others


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"init_lora_weights": "mica"},
        {"alora_invocation_tokens": [1], "task_type": "CAUSAL_LM"},
    ],
)
def test_variants_of_lora_are_refused(options):
    try:
        model = peft.get_peft_model(llama(), peft.LoraConfig(target_modules=TARGETS, **options))
    except (TypeError, ValueError):
        pytest.skip(f"peft has no {options}")
    with pytest.raises(ValueError, match=r"q_proj' is DoRA or another variant of LoRA"):
        find_gated_layers(model)


@pytest.mark.filterwarnings("ignore")
def test_lora_on_embeddings_alone_is_told():
    model = peft.get_peft_model(llama(), peft.LoraConfig(target_modules=["embed_tokens"]))
    with pytest.raises(ValueError, match=r"frozen, and its LoRA adapters are on others \(.*embed"):
        find_gated_layers(model)
    model = peft.get_peft_model(llama(), peft.LoraConfig(target_modules=TARGETS))
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="frozen, and so are its LoRA adapters"):
        find_gated_layers(model)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["IA3", "LoHa", "AdaLoRA", "prompt tuning"])
def test_adapters_of_another_kind_are_refused_by_the_plugin(kind):
    model = peft.get_peft_model(llama(), REFUSED[kind])
    strategy = make_strategy(model, [LoRAPlugin()])
    with pytest.raises(ValueError, match=r"model has adapters already, .*LoRAPlugin did not make"):
        strategy.train(domain_stream().train_stream[0])
