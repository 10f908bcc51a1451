"""Queries, keys and values of fused layers as layers of their own, where the models have them."""

import copy

import peft
import pytest
import torch
import transformers
from torch import nn

from avalanche_mgem.model.gate import RowGate
from avalanche_mgem.model.layers import find_gated_layers, resolve_gated_layers
from avalanche_mgem.restriction.rows import n_masked

VOCABULARY = 30
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 16, "n_head": 2, "n_layer": 1}
LLAMA = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0,
}  # fmt: skip
SHORT = {"max_position_embeddings": 16}
FALCON = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4,
}  # fmt: skip
DBRX = {
    "vocab_size": VOCABULARY, "d_model": 16, "n_heads": 4, "n_layers": 1,
    "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 800.0},
    "ffn_config": {
        "ffn_hidden_size": 20, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 16
    },
}  # fmt: skip
NO_KV = {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}
# Class, configuration class, settings; the fused layer, and the sizes of its parts.
CAUSAL = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2, "c_attn", (16, 16, 16)),
    "gpt": ("OpenAIGPTLMHeadModel", "OpenAIGPTConfig", GPT2, "c_attn", (16, 16, 16)),
    "bigcode": ("GPTBigCodeForCausalLM", "GPTBigCodeConfig", GPT2, "c_attn", (16, 8, 8)),
    "bigcode with heads": (
        "GPTBigCodeForCausalLM",
        "GPTBigCodeConfig",
        {**GPT2, "multi_query": False},
        "c_attn",
        (16, 16, 16),
    ),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", LLAMA, "qkv_proj", (16, 8, 8)),
    "falcon": ("FalconForCausalLM", "FalconConfig", FALCON, "query_key_value", (16, 4, 4)),
    "falcon with heads": (
        "FalconForCausalLM",
        "FalconConfig",
        {**FALCON, "multi_query": False},
        "query_key_value",
        (16, 16, 16),
    ),
    "new falcon": (
        "FalconForCausalLM",
        "FalconConfig",
        {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
        "query_key_value",
        (16, 8, 8),
    ),
    "neox": (
        "GPTNeoXForCausalLM",
        "GPTNeoXConfig",
        {**NO_KV, **SHORT},
        "query_key_value",
        (16, 16, 16),
    ),
    "bloom": (
        "BloomForCausalLM",
        "BloomConfig",
        {"vocab_size": VOCABULARY, "hidden_size": 16, "n_layer": 1, "n_head": 2},
        "query_key_value",
        (16, 16, 16),
    ),
    "mpt": (
        "MptForCausalLM",
        "MptConfig",
        {"vocab_size": VOCABULARY, "d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 16},
        "Wqkv",
        (16, 16, 16),
    ),
    "dbrx": ("DbrxForCausalLM", "DbrxConfig", DBRX, "Wqkv", (16, 8, 8)),
    "codegen": (
        "CodeGenForCausalLM",
        "CodeGenConfig",
        {**GPT2, "n_head": 4, "rotary_dim": 2, "n_positions": 16},
        "qkv_proj",
        (16, 16, 16),
    ),
    "persimmon": (
        "PersimmonForCausalLM",
        "PersimmonConfig",
        {**NO_KV, **SHORT},
        "query_key_value",
        (16, 16, 16),
    ),
}  # fmt: skip


def make(name):
    torch.manual_seed(4)
    kind, config, settings, *_ = CAUSAL[name]
    model = getattr(transformers, kind)(getattr(transformers, config)(**settings))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    return model.train()


def parts_of(model, layer, fused="parts"):
    found = find_gated_layers(model, fused=fused)
    return {
        part.name.rpartition(".")[2]: part
        for part in found
        if part.name.rpartition(".")[0].endswith(layer)
    }


def slopes(model, part, ids):
    model.zero_grad()
    model(input_ids=ids).logits[0, -1].square().sum().backward()
    (rows,) = part.rows
    return rows.of(rows.parameter.grad).flatten(0, 1)


@pytest.mark.parametrize("name", CAUSAL)
def test_the_parts_are_queries_keys_and_values(name):
    """By what they do to the last of two tokens of a causal model.

    A lone token attends to itself whatever query and key say. Of two, the last one's query counts
    and no other, so that its rows' slopes all lie along that token's input.
    """
    layer, sizes = CAUSAL[name][3:]
    model = make(name)
    parts = parts_of(model, layer)
    assert {which: part.n_rows for which, part in parts.items()} == dict(
        zip("qkv", sizes, strict=True)
    )
    lone, pair = torch.tensor([[3]]), torch.tensor([[3, 7]])
    alone = {which: float(slopes(model, part, lone).abs().max()) for which, part in parts.items()}
    assert max(alone["q"], alone["k"]) < 1e-5 * alone["v"]
    inputs = []
    module = parts["q"].module
    hook = module.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()[0, -1]))
    model(input_ids=pair)
    hook.remove()
    along = nn.functional.normalize(inputs[0], dim=0)
    off = {}
    for which in "qkv":
        rows = slopes(model, parts[which], pair)
        apart = rows - (rows @ along)[:, None] * along
        off[which] = float(apart.norm() / rows.norm())
    assert off["q"] < 1e-3 < 1e-2 < min(off["k"], off["v"]), off


def test_by_default_a_fused_layer_is_one():
    names = [layer.name for layer in find_gated_layers(make("gpt2"))]
    assert "transformer.h.0.attn.c_attn" in names
    assert not any(name.endswith((".q", ".k", ".v")) for name in names)


@pytest.mark.parametrize("fused", ["layer", "parts"])
@pytest.mark.parametrize("name", ["gpt2", "new falcon", "phi3", "codegen"])
def test_each_part_has_its_own_quota(name, fused):
    model, gate = make(name), RowGate(0.6, fused=fused, freeze="update")
    layer, sizes = CAUSAL[name][3:]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    gate.find(model)
    ids = torch.randint(1, VOCABULARY, (2, 5))
    gate.open(model)
    loss = model(input_ids=ids, labels=ids).loss
    gate.close()
    loss.backward()
    gate.mask(model)
    gate.hold(model, optimizer)
    outputs = []
    path = next(n for n, _ in model.named_modules() if n.endswith(layer))
    hook = model.get_submodule(path).register_forward_hook(lambda *args: outputs.append(args[2]))
    model(input_ids=ids)
    hook.remove()
    size = outputs[0].detach().abs().flatten(0, -2).mean(0)
    weight = model.get_submodule(path).weight
    weight = weight.T if type(model.get_submodule(path)).__name__ == "Conv1D" else weight
    before = weight.detach().clone()
    optimizer.step()
    gate.release()
    moved = (weight.detach() != before).any(1)
    if fused == "layer":
        assert int((~gate.last_mask[path]).sum()) == n_masked(0.6, sum(sizes))
        assert torch.equal(moved, gate.last_mask[path])
        torch.testing.assert_close(gate.last_scores[path], size)
        return
    assert path not in gate.last_mask
    layers = resolve_gated_layers(model, [f"{path}.{which}" for which in "qkv"], fused="parts")
    together = torch.zeros(sum(sizes), dtype=torch.bool)
    for part, n in zip(layers, sizes, strict=True):
        kept = gate.last_mask[part.name]
        assert kept.shape == (n,)
        assert int((~kept).sum()) == n_masked(0.6, n)
        (rows,) = part.rows
        where = rows.part.select(torch.arange(sum(sizes)), 0)
        torch.testing.assert_close(gate.last_scores[part.name], size[where])
        together[where] = kept
    assert torch.equal(moved, together)


@pytest.mark.parametrize("freeze", ["gradient", "update"])
def test_with_nothing_masked_parts_are_plain_to_the_bit(freeze):
    model, gate = make("new falcon"), RowGate(0.0, fused="parts", freeze=freeze)
    plain = copy.deepcopy(model)
    gate.find(model)
    for one, gated in ((model, True), (plain, False)):
        optimizer = torch.optim.AdamW(one.parameters(), lr=0.01)
        for step in range(2):
            ids = torch.arange(1, 11).view(2, 5) + step
            optimizer.zero_grad()
            if gated:
                gate.open(one)
            loss = one(input_ids=ids, labels=ids).loss
            gate.close()
            loss.backward()
            if gated:
                gate.mask(one)
                gate.hold(one, optimizer)
            optimizer.step()
            gate.release()
            gate.reset()
    for one, two in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("name", ["gpt2", "new falcon"])
def test_lora_on_a_fused_layer_has_parts_of_the_combined_output(name):
    layer = CAUSAL[name][3]
    model = make(name)
    config = peft.LoraConfig(r=2, target_modules=[layer], fan_in_fan_out=name == "gpt2")
    model = peft.inject_adapter_in_model(config, model)
    parts = {k: v for k, v in parts_of(model, layer).items() if k in "qkv"}
    assert [part.n_rows for part in parts.values()] == list(CAUSAL[name][4])
    for part in parts.values():
        (rows,) = part.rows
        assert rows.name.endswith("lora_B.default.weight")
    found = [p.name for p in find_gated_layers(model, fused="parts")]
    assert sum("lora_A" in n for n in found) == 1


def test_halves_of_a_fused_feed_forward_layer():
    assert {k: v.n_rows for k, v in parts_of(make("phi3"), "gate_up_proj").items()} == {
        "gate": 24,
        "up": 24,
    }


def test_models_of_images_and_others():
    from torchvision.models import swin_t

    with torch.device("meta"):
        swin = swin_t()
    names = [layer.name for layer in find_gated_layers(swin, ["qkv"], fused="parts")]
    assert names[:3] == [f"features.1.0.attn.qkv.{which}" for which in "qkv"]
    config = transformers.ModernBertConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, pad_token_id=0,
    )  # fmt: skip
    model = transformers.ModernBertModel(config)
    assert {k: v.n_rows for k, v in parts_of(model, "Wqkv").items()} == dict.fromkeys("qkv", 16)
    assert set(parts_of(model, "Wi")) == {"input", "gate"}


class Mine(nn.Module):
    """An attention that nobody knows."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 16), nn.Linear(8, 8)

    def forward(self, x):
        return self.out(self.qkv(x)[..., :8])


def test_a_split_that_is_not_known_is_refused_and_can_be_given():
    model = nn.Sequential(Mine(), nn.Linear(8, 2))
    with pytest.raises(ValueError, match=r"how '0\.qkv' of Mine is divided .*{'qkv': \(q, k, v\)}"):
        find_gated_layers(model, fused="parts")
    assert [p.name for p in find_gated_layers(model, ["out"], fused="parts")] == ["0.out"]
    parts = parts_of(model, "qkv", {"qkv": (8, 4, 4)})
    assert {k: v.n_rows for k, v in parts.items()} == {"q": 8, "k": 4, "v": 4}
    repeated = parts_of(model, "qkv", {"0.qkv": [2, 1, 1]})
    (rows,) = repeated["q"].rows
    assert rows.part.select(torch.arange(16), 0).tolist() == [0, 1, 4, 5, 8, 9, 12, 13]
    assert set(parts_of(model, "qkv", {"qkv": (12, 4)})) == {"0", "1"}
    with pytest.raises(ValueError, match=r"the parts of '0\.qkv', \(8, 8, 8\), do not fill its 16"):
        find_gated_layers(model, fused={"qkv": (8, 8, 8)})
    with pytest.raises(ValueError, match=r"fused: 'kqv' names no gated .* 0\.qkv"):
        find_gated_layers(model, fused={"kqv": (8, 4, 4)})
    model = nn.Sequential(nn.Conv1d(3, 6, 1), nn.Linear(3, 3), nn.Linear(3, 2))
    with pytest.raises(ValueError, match="fused: '0' names no gated linear layer"):
        find_gated_layers(model, fused={"0": (3, 3)})
