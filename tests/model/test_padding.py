"""Which tokens count, for each layer."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from avalanche_mgem.model.padding import is_encoder_decoder, token_masks

SOURCE = torch.tensor([[1, 1, 0], [1, 1, 1]])
TARGET = torch.tensor([[1, 0, 0], [1, 1, 0]])
LABELS = torch.where(TARGET == 1, 5, -100)


@pytest.mark.parametrize(
    "batch",
    [
        {"attention_mask": SOURCE, "decoder_attention_mask": TARGET},
        {"attention_mask": SOURCE, "labels": LABELS},
    ],
    ids=lambda batch: list(batch)[-1],
)
@pytest.mark.parametrize(
    ("layer", "mask"),
    [
        ("encoder.block.0.layer.0.SelfAttention.k", SOURCE),
        ("decoder.block.0.layer.0.SelfAttention.k", TARGET),
        ("decoder.block.0.layer.1.EncDecAttention.q", TARGET),
        ("decoder.block.0.layer.1.EncDecAttention.k", SOURCE),
        ("model.decoder.block.0.layer.1.EncDecAttention.v.lora_A.task0", SOURCE),
        ("decoder.block.0.layer.2.DenseReluDense.wo", TARGET),
        ("model.decoder.layers.1.encoder_attn.v_proj", SOURCE),
        ("model.decoder.layers.1.encoder_attn.out_proj", TARGET),
        ("model.decoder.layers.1.self_attn.v_proj", TARGET),
    ],
)
def test_keys_and_values_of_cross_attention_are_the_sources(layer, mask, batch):
    masks = token_masks(batch, encoder_decoder=True)
    assert torch.equal(masks(layer) == 1, mask == 1)


@pytest.mark.parametrize(("own", "mask"), [({"decoder_input_ids": TARGET}, None), ({}, SOURCE)])
def test_without_a_mask_of_its_own_a_decoder_counts_its_own_tokens_or_the_sources(own, mask):
    masks = token_masks({"attention_mask": SOURCE, **own}, encoder_decoder=True)
    of_layer = masks("decoder.block.0.layer.0.SelfAttention.k") if callable(masks) else masks
    assert of_layer is mask


def test_a_model_without_a_decoder_has_one_mask():
    batch = {"attention_mask": SOURCE, "labels": LABELS}
    assert token_masks(batch) is SOURCE
    assert token_masks({"input_ids": SOURCE}) is None
    # Labels of samples are none of tokens.
    one = {"attention_mask": SOURCE, "labels": torch.tensor([1, 2])}
    assert token_masks(one, encoder_decoder=True) is SOURCE


def test_a_wrapped_model_says_what_it_is():
    model = nn.Sequential(nn.Linear(2, 2))
    assert not is_encoder_decoder(model)
    model[0].config = SimpleNamespace(is_encoder_decoder=True)
    assert is_encoder_decoder(model)
