"""Which layers get adapters: those that are meant, in every model, as far as adapters fit."""

import warnings

import peft
import pytest
import torch
import transformers
from torch import nn

from avalanche_mgem.huggingface.adapters import Adapter, adapted_names, add_adapter, lora_layers

SMALL = {
    "vocab_size": 40,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
DEEPSEEK = {
    "moe_intermediate_size": 8,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "q_lora_rank": 4,
    "kv_lora_rank": 4,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 4,
}
# name -> (class of the configuration, class of the model, its settings); all mixtures of experts
MIXTURES = {
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", {"num_local_experts": 2}),
    "qwen3": (
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8, "head_dim": 4},
    ),
    "gpt-oss": (
        "GptOssConfig",
        "GptOssForCausalLM",
        {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 4},
    ),
    "deepseek": ("DeepseekV3Config", "DeepseekV3ForCausalLM", DEEPSEEK),
    "phimoe": ("PhimoeConfig", "PhimoeForCausalLM", {"num_local_experts": 2}),
}


def mixture(name):
    configuration, model, settings = MIXTURES[name]
    if not hasattr(transformers, model):
        pytest.skip(f"transformers has no {model}")
    torch.manual_seed(0)
    configured = getattr(transformers, configuration)(**SMALL, **settings)
    return getattr(transformers, model)(configured)


def add(model, target_modules, name="lora", rank=2):
    adapter = Adapter(rank, 4, 0.0, target_modules, True, None)
    add_adapter(model, name, adapter, seed=0, device=torch.device("cpu"))


@pytest.mark.filterwarnings("ignore:target_modules='all-linear' leaves out")
@pytest.mark.parametrize(
    "target_modules",
    [
        None,
        "all-linear",
        ["o_proj"],
        ["layers.0.self_attn.o_proj"],
        ["model.layers.1.self_attn.o_proj", "q_b_proj", "shared_experts.down_proj"],
        r".*layers\.1\..*(o|v)_proj",
    ],
)
@pytest.mark.parametrize("name", MIXTURES)
def test_in_mixtures_of_experts_what_is_meant_is_adapted(name, target_modules):
    """peft takes a pattern for the last parts of the names that it matches, in all blocks."""
    model = mixture(name)
    if isinstance(target_modules, list) and len(target_modules) > 1 and name != "deepseek":
        target_modules = target_modules[:1]
    meant = adapted_names(model, target_modules, rank=2)
    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    if target_modules == ["layers.0.self_attn.o_proj"]:
        assert meant == ["model.layers.0.self_attn.o_proj"]
    if target_modules == "all-linear":
        assert set(meant) == {n for n in linear if n != "lm_head" and "router" not in n}
    for index in range(2):
        add(model, target_modules, f"task{index}")
        assert list(lora_layers(model)) == meant
    assert list(model.peft_config) == ["task0", "task1"]
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"{n}.lora_{part}.task1.weight" for n in meant for part in "AB"}
    output = model(input_ids=torch.randint(1, 40, (2, 6))).logits
    output.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_what_peft_adapts_besides_is_refused_with_both_lists(monkeypatch):
    usual = peft.inject_adapter_in_model

    def widening(config, model, adapter_name, **_):
        config.target_modules = ["0", "2"]
        return usual(config, model, adapter_name=adapter_name)

    monkeypatch.setattr(peft, "inject_adapter_in_model", widening)
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"adapts 2 layers \(0, 2\) where 1 layers \(0\) are mean"):
        add(model, ["0"])
    assert not lora_layers(model)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not hasattr(model, "peft_config")


class Router(nn.Linear):
    def forward(self, x):
        return super().forward(x), x


class Doubled(nn.Linear):
    def forward(self, x):
        return torch.cat([super().forward(x), x], -1)


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Depthwise(nn.Conv2d):
    def __init__(self, channels, kernel):
        super().__init__(channels, channels, kernel)


class Quantised(nn.Linear):
    """As bitsandbytes': eight bits a weight, which no gradient can change."""

    def __init__(self, into, out):
        super().__init__(into, out)
        numbers = torch.randint(-127, 128, (out, into), dtype=torch.int8)
        self.weight = nn.Parameter(numbers, requires_grad=False)

    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(x.dtype) / 127, self.bias)


UNFIT = {
    "groups": (lambda: nn.Conv2d(4, 4, 3, groups=4), "groups=4, which rank=2 must"),
    "dilation": (lambda: nn.Conv2d(4, 4, 3, dilation=2), r"dilation=\(2, 2\)"),
    "padding": (lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "'reflect'"),
    "constructor": (lambda: Depthwise(4, 3), "Depthwise is not made as a Conv2d"),
    "tuple": (lambda: Router(4, 4), "output of Router is not that of a Linear"),
    "width": (lambda: Doubled(4, 4), "output of Doubled is not that of a Linear"),
    "lazy": (lambda: nn.LazyLinear(4), "lazy"),
    "twice": (lambda: nn.Sequential(*[nn.Linear(4, 4)] * 2), "in several places"),
}
FIT = {
    "groups": lambda: nn.Conv2d(4, 4, 3, groups=2),
    "stride": lambda: nn.Conv2d(4, 4, 3, stride=2, padding=1),
    "scaled": lambda: Scaled(4, 4),
    "quantised": lambda: Quantised(4, 4),
    "conv1d": lambda: transformers.pytorch_utils.Conv1D(4, 4),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_layers_that_no_adapter_fits_are_left_out_or_refused_by_name(kind):
    make, said = UNFIT[kind]
    model = nn.Sequential(nn.Linear(4, 4), make(), nn.Linear(4, 2))
    first = next(n for n, m in model[1].named_modules() if isinstance(m, nn.Linear | nn.Conv2d))
    name = "1" + (f".{first}" if first else "")
    assert adapted_names(model, None, rank=2) == ["0"]
    with pytest.raises(ValueError, match=rf"target_modules: '{name}' cannot .*{said}"):
        add(model, ["0", name])
    assert not lora_layers(model)
    del model[0]
    with pytest.raises(ValueError, match=f"no layer that can take an adapter of rank=2: .*{said}"):
        adapted_names(model, None, rank=2)


def test_what_all_linear_leaves_out_is_told():
    model = nn.Sequential(nn.Linear(4, 4), Router(4, 4), nn.Conv2d(4, 4, 3, groups=4))
    with pytest.warns(UserWarning, match="'all-linear' leaves out '1': the output of Router"):
        assert adapted_names(nn.Sequential(*model, nn.Linear(4, 2)), "all-linear") == ["0"]


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups")
@pytest.mark.parametrize("kind", FIT)
def test_layers_that_fit_are_taken(kind):
    model = nn.Sequential(FIT[kind](), nn.Flatten(1), nn.LazyLinear(2))
    x = torch.randn(2, 4, 5, 5) if isinstance(model[0], nn.Conv2d) else torch.randn(2, 4)
    before = model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        add(model, None)
    assert list(lora_layers(model)) == ["0"]
    assert torch.equal(model(x), before)


def test_mambas_kernels_call_no_out_proj():
    config = transformers.MambaConfig(
        vocab_size=40, hidden_size=8, num_hidden_layers=1, state_size=4, pad_token_id=0
    )
    model = transformers.MambaForCausalLM(config)
    last_parts = {name.rpartition(".")[2] for name in adapted_names(model, None)}
    assert last_parts == {"in_proj", "x_proj"}
    with pytest.raises(ValueError, match=r"mixer\.out_proj' cannot .* Mamba's kernels"):
        adapted_names(model, ["out_proj"])
