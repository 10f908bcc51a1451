"""Mixtures of experts from tiny configurations, of all ways in which transformers keeps them."""

import pytest
import torch
import transformers

NEEDS_EXPERTS = pytest.mark.skipif(
    not hasattr(transformers.PreTrainedModel, "set_experts_implementation"),
    reason="before version 5, transformers keeps experts as linear layers",
)
VOCABULARY = 30
T = 0.6
BASE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
DEEPSEEK = {
    "intermediate_size": 24, "moe_intermediate_size": 20, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 0,
    "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
    "v_head_dim": 8,
}  # fmt: skip
FEW = {"num_experts": 4, "num_experts_per_tok": 2}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
DBRX = {
    "vocab_size": VOCABULARY, "d_model": 16, "n_heads": 2, "n_layers": 1,
    "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8},
    "ffn_config": {
        "ffn_hidden_size": 20, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 16
    },
}  # fmt: skip
# Class, configuration class, settings.
MIXTURES = {
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**BASE, "intermediate_size": 20, **LOCAL}),
    "qwen2": (
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        {**BASE, "moe_intermediate_size": 20, "shared_expert_intermediate_size": 12, **FEW},
    ),
    "qwen3": (
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        {**BASE, "head_dim": 8, "moe_intermediate_size": 20, **FEW},
    ),
    "olmoe": ("OlmoeForCausalLM", "OlmoeConfig", {**BASE, "intermediate_size": 20, **FEW}),
    "gpt-oss": (
        "GptOssForCausalLM",
        "GptOssConfig",
        {**BASE, "head_dim": 8, "intermediate_size": 20, **LOCAL},
    ),
    "deepseek": ("DeepseekV3ForCausalLM", "DeepseekV3Config", {**BASE, **DEEPSEEK}),
    "phimoe": ("PhimoeForCausalLM", "PhimoeConfig", {**BASE, "intermediate_size": 20, **LOCAL}),
    "granite": (
        "GraniteMoeForCausalLM",
        "GraniteMoeConfig",
        {**BASE, "intermediate_size": 20, **LOCAL},
    ),
    "llama4": (
        "Llama4ForCausalLM",
        "Llama4TextConfig",
        {
            **BASE, "head_dim": 8, "intermediate_size": 20, "intermediate_size_mlp": 24, **LOCAL,
            "num_experts_per_tok": 1,
        },
    ),
    "dbrx": ("DbrxForCausalLM", "DbrxConfig", DBRX),
}  # fmt: skip
IMPLEMENTATIONS = ("eager", "batched_mm", "grouped_mm")
# These know one implementation only.
OF_ONE_WAY = {"llama4", "dbrx"}


def ways():
    """Every mixture with each implementation that it has."""
    for name in MIXTURES:
        for way in ("eager",) if name in OF_ONE_WAY else IMPLEMENTATIONS:
            yield name, way


def make_mixture(name, way="eager", **settings):
    """A model in training mode, whose weights are all random."""
    torch.manual_seed(4)
    kind, config, own = MIXTURES[name]
    model = getattr(transformers, kind)(getattr(transformers, config)(**{**own, **settings}))
    if name not in OF_ONE_WAY:
        model.set_experts_implementation(way)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.train()


def make_batch(seed=0, size=(3, 5)):
    """Token ids with labels; the last of the longer texts are padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCABULARY, size, generator=generator)
    mask = torch.ones_like(ids)
    mask[1, -2:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def gated_pass(model, batch, gate, *, backward=True):
    """What a step does up to the mask."""
    gate.open(model, batch)
    loss = model(**batch).loss
    gate.close()
    if backward:
        loss.backward()


def adamw(model):
    """An optimiser that would move what has no gradient."""
    return torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)


def snapshot(model):
    """Copies of all parameters."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
