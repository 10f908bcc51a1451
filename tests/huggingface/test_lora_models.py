"""Where adapters go, and what else trains: transformers' own models, by their configuration."""

import pytest
import torch
import transformers
from torch import nn

from avalanche_mgem.huggingface import KeywordModel, text_classifier
from avalanche_mgem.huggingface.adapters import Adapter, adapted_names, add_adapter, lora_layers
from avalanche_mgem.model.layers import find_gated_layers

SMALL = {"vocab_size": 40, "hidden_size": 8, "intermediate_size": 12, "pad_token_id": 0}
DEEP = {"num_attention_heads": 2, "num_hidden_layers": 1}
CPU = torch.device("cpu")


def t5():
    config = transformers.T5Config(
        vocab_size=40, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2
    )
    return transformers.T5ForConditionalGeneration(config)


def roberta(kind="RobertaForSequenceClassification"):
    return getattr(transformers, kind)(transformers.RobertaConfig(**SMALL, **DEEP))


def llama():
    config = transformers.LlamaConfig(**SMALL, **DEEP, num_key_value_heads=1)
    return transformers.LlamaForCausalLM(config)


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=40, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def distilbert():
    config = transformers.DistilBertConfig(
        vocab_size=40, dim=8, hidden_dim=12, n_layers=1, n_heads=2
    )
    return transformers.DistilBertForSequenceClassification(config)


# model -> last parts of the names of adapted layers, and the number of trained head parameters
MODELS = {
    "t5": (t5, {"q", "v"}, 0),
    "roberta": (roberta, {"query", "value"}, 4),
    "roberta by keyword": (lambda: KeywordModel(roberta()), {"query", "value"}, 4),
    "masked roberta": (lambda: roberta("RobertaForMaskedLM"), {"query", "value"}, 0),
    "classifier": (lambda: text_classifier(roberta("RobertaModel")), {"query", "value"}, 2),
    "llama": (llama, {"q_proj", "v_proj"}, 0),
    "gpt2": (gpt2, {"c_attn"}, 0),
    "unknown to peft": (
        distilbert,
        {"q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2", "pre_classifier"},
        2,
    ),
    "convolutions": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 8), nn.Linear(8, 2)),
        {"0", "2"},
        2,
    ),
}


def adapter(**changed):
    settings = {"rank": 2, "alpha": 4, "dropout": 0.0, "target_modules": None}
    return Adapter(**{**settings, "train_heads": True, "heads": None, **changed})


@pytest.mark.parametrize("name", MODELS)
def test_adapters_and_heads_train_alone_and_can_be_gated(name):
    make, last_parts, n_heads = MODELS[name]
    model = make()
    targets = adapted_names(model, None)
    assert {target.rpartition(".")[2] for target in targets} == last_parts
    for index in range(2):
        add_adapter(model, f"task{index}", adapter(), seed=index, device=CPU)
        assert list(lora_layers(model)) == targets
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    new = [f"{t}.lora_{part}.task1.weight" for t in targets for part in "AB"]
    assert set(new) < set(trained) or not n_heads
    assert len(trained) == len(new) + n_heads
    assert all(layer.active_adapters == ["task0", "task1"] for layer in lora_layers(model).values())
    gated = {layer.name: [rows.name for rows in layer.rows] for layer in find_gated_layers(model)}
    expected = {t: [f"{t}.lora_B.task1.weight"] for t in targets}
    expected |= {f"{t}.lora_A.task1": [f"{t}.lora_A.task1.weight"] for t in targets}
    assert gated == expected


def test_a_language_models_own_head_trains_when_it_is_named():
    model = llama()
    add_adapter(model, "lora", adapter(heads=["lm_head"]), seed=0, device=CPU)
    assert model.lm_head.weight.requires_grad


def test_a_frozen_part_of_a_head_stays_frozen_and_what_comes_later_trains():
    model = roberta()
    model.classifier.dense.requires_grad_(False)
    add_adapter(model, "task0", adapter(), seed=0, device=CPU)
    model.roberta.later = nn.Linear(2, 2)
    add_adapter(model, "task1", adapter(), seed=0, device=CPU)
    assert not model.classifier.dense.weight.requires_grad
    assert model.classifier.out_proj.weight.requires_grad
    assert model.roberta.later.weight.requires_grad


@pytest.mark.parametrize(
    ("target_modules", "count"),
    [(["query"], 1), (["self.query", "dense"], 4), ("all-linear", 6), (r".*attention.*\.dense", 1)],
)
def test_targets_are_named_as_in_peft(target_modules, count):
    names = adapted_names(roberta(), target_modules)
    assert len(names) == count
    assert not any("classifier" in name for name in names)


@pytest.mark.parametrize("target_modules", [["query", "nothing"], ["classifier"], "query", []])
def test_targets_that_match_nothing_are_refused(target_modules):
    with pytest.raises(ValueError, match="target_modules"):
        adapted_names(roberta(), target_modules)


def test_a_model_of_heads_alone_is_refused():
    with pytest.raises(ValueError, match="no layer that can take an adapter"):
        adapted_names(nn.Sequential(nn.ReLU(), nn.Linear(3, 2)), None)
    with pytest.raises(ValueError, match="no layer that can take an adapter"):
        adapted_names(nn.LayerNorm(3), None)
