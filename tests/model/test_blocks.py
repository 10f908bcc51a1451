"""A model's modules in order from the output side: found by structure, every parameter in one."""

import pytest
import torch
import torchvision
from avalanche.models import IncrementalClassifier, SimpleMLP, SlimResNet18
from hypothesis import given, settings
from hypothesis import strategies as st
from lookalikes import LanguageModel, with_lora
from peft import LoraConfig, get_peft_model
from tiny import SETTINGS, make_model
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from avalanche_mgem.model.blocks import find_blocks, keeps_statistics

SIZES = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 40}


def roberta(layers=3):
    return RobertaForSequenceClassification(RobertaConfig(num_hidden_layers=layers, **SIZES))


def t5(tied=True):
    config = T5Config(vocab_size=40, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    config.tie_word_embeddings = tied
    return T5ForConditionalGeneration(config)


def lora():
    options = LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], r=2)
    return get_peft_model(roberta(2), options)


def llama():
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, num_key_value_heads=2, **SIZES))


def hf_resnet():
    sizes = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [2, 1]}
    return ResNetForImageClassification(ResNetConfig(layer_type="basic", **sizes))


RESNET = [f"layer{stage}.{block}" for stage in (4, 3, 2, 1) for block in (1, 0)]

# model -> the names of its modules from the output side
ORDERS = {
    "resnet": (torchvision.models.resnet18, [*RESNET, "conv1"]),
    "slim resnet": (lambda: SlimResNet18(10), [*RESNET, "conv1"]),
    "resnet of transformers": (
        hf_resnet,
        [f"resnet.encoder.stages.{b}" for b in ("1.layers.0", "0.layers.1", "0.layers.0")]
        + ["resnet.embedder"],
    ),
    "bert": (
        lambda: BertForSequenceClassification(BertConfig(num_hidden_layers=2, **SIZES)),
        ["bert.pooler", "bert.encoder.layer.1", "bert.encoder.layer.0", "bert.embeddings"],
    ),
    "roberta": (
        roberta,
        [*(f"roberta.encoder.layer.{i}" for i in (2, 1, 0)), "roberta.embeddings"],
    ),
    "one layer": (
        lambda: roberta(1),
        ["roberta.encoder.layer.0", "roberta.embeddings"],
    ),
    "t5": (t5, ["decoder.block.1", "decoder.block.0", "encoder.block.1", "encoder.block.0"]),
    "llama": (llama, ["model.layers.1", "model.layers.0", "model.embed_tokens"]),
    "lora": (lora, [f"base_model.model.roberta.encoder.layer.{i}" for i in (1, 0)]),
    "lookalike": (lambda: LanguageModel(tied=False), ["layers.1", "layers.0", "embedding"]),
    "mlp": (lambda: SimpleMLP(hidden_layers=3), ["features.4", "features.3", "features.0"]),
    "weight norm": (
        lambda: nn.Sequential(weight_norm(nn.Linear(3, 4)), nn.Linear(4, 4), nn.Linear(4, 2)),
        ["1", "0"],
    ),
}


def check_partition(model, blocks):
    """Every trainable parameter is in one module or in a head."""
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    divided = [n for names in blocks.parameters.values() for n in names]
    assert sorted([*divided, *blocks.heads]) == sorted(trainable)
    assert all(blocks.parameters.values())
    assert blocks.statistics.keys() == blocks.parameters.keys()
    for module, names in blocks.statistics.items():
        for name in names:
            assert keeps_statistics(model.get_submodule(name)), (module, name)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
@pytest.mark.parametrize("name", ORDERS)
def test_order_from_the_output_side(name):
    make, expected = ORDERS[name]
    model = make()
    blocks = find_blocks(model)
    assert list(blocks.names) == expected
    check_partition(model, blocks)


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_settings_are_divided(setting):
    model = make_model(setting)
    check_partition(model, find_blocks(model))


def test_norms_and_their_statistics_go_with_their_layer():
    model = torchvision.models.resnet18()
    blocks = find_blocks(model)
    assert blocks.parameters["conv1"] == ("conv1.weight", "bn1.weight", "bn1.bias")
    assert blocks.statistics["conv1"] == ("bn1",)
    assert blocks.statistics["layer2.0"] == (
        "layer2.0.bn1",
        "layer2.0.bn2",
        "layer2.0.downsample.1",
    )
    assert sum(map(len, blocks.statistics.values())) == 20


@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_without_parameters_goes_with_the_layer_before_it(affine):
    norms = [nn.BatchNorm1d(4, affine=affine) for _ in range(4)]
    model = nn.Sequential(
        norms[0], nn.Linear(4, 4), norms[1], nn.ReLU(), nn.Linear(4, 4), norms[2], nn.Linear(4, 2)
    )
    blocks = find_blocks(model)
    assert blocks.names == ("4", "1")
    assert blocks.statistics == {"4": ("5",), "1": ("0", "2")}
    model[4].requires_grad_(False)
    model[5].requires_grad_(False)
    assert find_blocks(model).statistics == {"1": ("0", "2", "5")}


layers = st.lists(
    st.sampled_from(["linear", "norm", "relu", "block", "nested", "frozen"]), max_size=9
)


class Residual(nn.Module):
    """A block of its own class."""

    def __init__(self):
        super().__init__()
        self.one, self.norm, self.two = nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3)


PIECES = {
    "linear": lambda: nn.Linear(3, 3),
    "norm": lambda: nn.BatchNorm1d(3),
    "relu": nn.ReLU,
    "block": Residual,
    "nested": lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3)),
    "frozen": lambda: nn.Linear(3, 3).requires_grad_(False),
}


@given(layers)
@settings(max_examples=40, deadline=None)
def test_any_stack_is_divided_in_order(kinds):
    model = nn.Sequential(nn.Linear(3, 3), *(PIECES[k]() for k in kinds), nn.Linear(3, 2))
    blocks = find_blocks(model)
    check_partition(model, blocks)
    assert blocks.heads == (f"{len(kinds) + 1}.weight", f"{len(kinds) + 1}.bias")
    divided = [n for module in reversed(blocks.names) for n in blocks.parameters[module]]
    shared = [n for n, p in model.named_parameters() if p.requires_grad and n not in blocks.heads]
    assert divided == shared  # from the input side, each module is one stretch of the model
    n_blocks = kinds.count("block") if kinds.count("block") > 1 else 0
    whole = [m for m in blocks.names if len(m.split(".")) == 1 and m != "0"]
    assert sum(kinds[int(m) - 1] == "block" for m in whole) == n_blocks
    statistics = [n for names in blocks.statistics.values() for n in names]
    assert sorted(statistics) == sorted(n for n, m in model.named_modules() if keeps_statistics(m))


def test_tied_embeddings_are_the_heads():
    tied, free = LanguageModel(), LanguageModel(tied=False)
    assert find_blocks(tied).heads == ("embedding.weight",)
    assert find_blocks(tied).names == ("layers.1", "layers.0")
    assert find_blocks(free).heads == ("out.weight",)


def test_lora_leaves_frozen_parameters_to_others():
    model = with_lora(LanguageModel(tied=False), ["q_proj"], {"default": 2})
    blocks = find_blocks(model)
    assert blocks.names == ("layers.1", "layers.0")
    assert all("lora" in n for names in blocks.parameters.values() for n in names)
    assert blocks.heads == ()


def test_growing_heads_are_heads_before_and_after():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), IncrementalClassifier(4, 2))
    assert find_blocks(model).names == ("1", "0")
    model[2].classifier = nn.Linear(4, 5)
    assert find_blocks(model).names == ("1", "0")


def test_a_block_made_of_convolutions_is_one():
    names = find_blocks(torchvision.models.mobilenet_v2(width_mult=0.1)).names
    assert list(names) == [f"features.{i}" for i in range(18, -1, -1)]


def mlp():
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def halves(model):
    return {"second": ["1.weight", "1.bias"], "first": ["0.weight"]}


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        (["0", "1"], {"0": ("0",), "1": ("1",), "rest": ("2",)}),
        (
            ["[12]", "0.weight"],
            {"[12]": ("1", "2"), "0.weight": ("0.weight",), "rest": ("0.bias",)},
        ),
        ({"top": ["2", "1.*"], "bottom": ["0"]}, {"top": ("1", "2"), "bottom": ("0",)}),
        (halves, {"second": ("1",), "first": ("0.weight",), "rest": ("0.bias", "2")}),
        (["?.weight"], None),
    ],
)
def test_modules_may_be_named(modules, expected):
    model = mlp()
    blocks = find_blocks(model, modules)
    check_partition(model, blocks)
    if expected is None:
        assert blocks.names == ("?.weight", "rest")
        return
    assert list(blocks.names) == list(expected)
    for name, parts in expected.items():
        owned = tuple(n for n, _ in model.named_parameters() if n.startswith(parts))
        assert blocks.parameters[name] == owned
    assert "2" in blocks.statistics[next(m for m, p in expected.items() if "2" in p)]


def stranger(model):
    return {"a": ["0.weigth"]}


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (["1", "4"], "modules: '4' matches no submodule and no parameter; .*known: 0, 1, 2, 3"),
        (["0.weigth"], "'0.weigth' matches no .*did you mean '0.weight'"),
        (["3"], r"modules: '3' has parameters of output heads only, .*\(see heads\)"),
        (["0", "0.weight"], "the parameter '0.weight' is in both '0' and '0.weight'"),
        ({"a": ["0"], "b": ["?"]}, "in both 'a' and 'b'"),
        (stranger, "put '0.weigth' into 'a', which is no parameter of the model; did you mean"),
        ([], "modules must be None, a list of names or patterns"),
        ({}, "modules must be None"),
        ("layer", "modules must be None, .*got 'layer'"),
        ({"a": "0"}, "modules must be None"),
        ([3], r"modules must be None, .*got \[3\]"),
        (3, "modules must be None, .*got 3"),
        ({"0", "1"}, "modules must be None, .*got a set, which has no order"),
        (frozenset("0"), "got a set, which has no order"),
    ],
)
def test_what_does_not_fit_is_named(modules, message):
    with pytest.raises(ValueError, match=message):
        find_blocks(mlp(), modules)


def test_a_model_that_is_all_head_is_refused():
    with pytest.raises(ValueError, match=r"no trainable parameter outside its output heads.*: 0\)"):
        find_blocks(nn.Sequential(nn.Linear(3, 2)))
    with pytest.raises(ValueError, match="heads: 'head' matches no module"):
        find_blocks(mlp(), heads=["head"])


def test_parameters_of_the_model_itself_are_a_module():
    model = mlp()
    model.register_parameter("scale", nn.Parameter(torch.ones(1)))
    assert find_blocks(model).names == ("1", "0", "(model)")
