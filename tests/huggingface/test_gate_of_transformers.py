"""The gate on transformers' own models, plain and with peft's LoRA, against a slow reference."""

import peft
import pytest
import torch
import transformers
from reference.gate import slow_masks

from avalanche_mgem.model.gate import RowGate

VOCABULARY = 40
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 12, "intermediate_size": 20, "num_labels": 3}
HEADS = {"num_attention_heads": 2, "num_hidden_layers": 2}


def t5():
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=12, d_kv=6, d_ff=20, num_layers=2, num_heads=2,
        decoder_start_token_id=0, dropout_rate=0.0,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)


def roberta():
    config = transformers.RobertaConfig(
        **SMALL, **HEADS, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    return transformers.RobertaForSequenceClassification(config)


def llama():
    config = transformers.LlamaConfig(**SMALL, **HEADS, num_key_value_heads=1, pad_token_id=0)
    return transformers.LlamaForCausalLM(config)


MODELS = {
    "t5": (t5, ["q", "v", "wo"]),
    "roberta": (roberta, ["query", "value", "dense"]),
    "llama": (llama, ["q_proj", "v_proj", "down_proj"]),
}


def batch(name, generator):
    ids = torch.randint(3, VOCABULARY, (3, 7), generator=generator)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    labels = torch.randint(3, VOCABULARY, (3, 5), generator=generator)
    return inputs | {"labels": {"t5": labels, "llama": ids}.get(name, torch.tensor([0, 1, 2]))}


def adapted(name, lora):
    torch.manual_seed(3)
    make, targets = MODELS[name]
    model = make()
    if lora:
        config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, lora_dropout=0.0)
        model = peft.inject_adapter_in_model(config, model)
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:  # it begins at zero, and then the adapter says nothing
                torch.nn.init.normal_(parameter, std=0.3)
    return model.train()


def gated_step(model, inputs, gate):
    gate.find(model)
    gate.open(model, inputs)
    loss = model(**inputs).loss
    gate.close()
    loss.backward()
    gate.mask(model)


HEADS_OF = {"t5": "lm_head", "roberta": "classifier", "llama": "lm_head"}


@pytest.mark.cover
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("lora", [False, True], ids=["plain", "lora"])
@pytest.mark.parametrize("fraction", [0.3, 0.7])
def test_masks_are_those_of_a_pass_for_each_layer(fraction, lora, name):
    model = adapted(name, lora)
    gate = RowGate(fraction)
    inputs = batch(name, torch.Generator().manual_seed(5))
    wanted = slow_masks(model, inputs, fraction)
    gated_step(model, inputs, gate)
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    wanted = {
        layer: kept
        for layer, kept in wanted.items()
        if not layer.startswith(HEADS_OF[name]) and any(t.startswith(layer) for t in trainable)
    }
    masks = {layer: kept.tolist() for layer, kept in gate.last_mask.items()}
    assert masks.keys() == wanted.keys()
    assert masks == wanted
    assert len(wanted) > 10 or lora


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_zero_in_masked_rows_and_nowhere_else(name):
    model, inputs = adapted(name, lora=False), batch(name, torch.Generator().manual_seed(5))
    model(**inputs).loss.backward()
    plain = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    gate = RowGate(0.5)
    gated_step(model, inputs, gate)
    weights = {f"{layer}.weight" for layer in gate.last_mask}
    for parameter_name, gradient in plain.items():
        own = model.get_parameter(parameter_name).grad
        if parameter_name in weights:
            kept = gate.last_mask[parameter_name.removesuffix(".weight")]
            assert torch.equal(own[kept], gradient[kept])
            assert not own[~kept].any()
        else:
            assert torch.equal(own, gradient)


@pytest.mark.parametrize("name", MODELS)
def test_padding_can_be_left_out(name):
    """More padding changes no score; with it counted, it does."""
    generator = torch.Generator().manual_seed(5)
    short = batch(name, generator)
    pad = torch.zeros(3, 4, dtype=torch.int64)
    longer = {
        **short,
        "input_ids": torch.cat([short["input_ids"], pad + 1], 1),
        "attention_mask": torch.cat([short["attention_mask"], pad], 1),
    }
    if name == "llama":
        longer["labels"] = torch.cat([short["labels"], pad - 100], 1)
    scores = {}
    for ignore in (False, True):
        for inputs in (short, longer):
            model = adapted(name, lora=False)
            gate = RowGate(0.5, ignore_padding=ignore)
            gated_step(model, inputs, gate)
            scores[ignore, inputs is longer] = torch.cat(list(gate.last_scores.values()))
    torch.testing.assert_close(scores[True, True], scores[True, False], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(scores[False, True], scores[False, False], rtol=1e-3)
