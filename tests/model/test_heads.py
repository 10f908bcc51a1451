"""Output heads by class, name and order, and as one forward pass shows them."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from avalanche_mgem.model.heads import HeadWatch, head_names
from avalanche_mgem.model.layers import find_gated_layers, find_heads, gateable_layers


def seen(model, *inputs):
    watch = HeadWatch()
    watch.open(gateable_layers(model))
    watch.close(model(*inputs))
    assert not any(module._forward_hooks for module in model.modules())
    return watch.found


class Several(nn.Module):
    """Heads in another order than they run, beside a layer that is registered last."""

    def __init__(self, form=tuple):
        super().__init__()
        self.cls_score, self.bbox_pred = nn.Linear(6, 3), nn.Linear(6, 4)
        self.body, self.form = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 6)), form

    def forward(self, x):
        x = self.body(x)
        score, box = self.cls_score(x), self.bbox_pred(x)
        if self.form is tuple:
            return score, box
        if self.form is dict:
            return {"score": score, "box": [box]}
        return functional.cross_entropy(score, torch.zeros(len(x), dtype=torch.long)) + box.mean()


class Residual(nn.Module):
    def __init__(self, blocks=3):
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)) for _ in range(blocks)
        )

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return x


class Encoder(nn.Module):
    """Returns hidden states beside its logits, as models of transformers do."""

    def __init__(self):
        super().__init__()
        self.head, self.body = nn.Linear(4, 2), Residual()

    def forward(self, x):
        hidden = self.body(x)
        return {"logits": self.head(hidden), "hidden": (hidden, self.body.stem(x))}


X = torch.randn(3, 5)


@pytest.mark.parametrize("form", [tuple, dict, sum])
def test_every_layer_that_ends_in_the_output_is_a_head(form):
    assert set(seen(Several(form), X)) == {"cls_score", "bbox_pred"}


@pytest.mark.parametrize(
    ("model", "x", "heads"),
    [
        (nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)), X, ["2"]),
        (nn.Sequential(nn.Linear(5, 4), nn.ReLU(inplace=True), nn.LayerNorm(4)), X, ["0"]),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)), X[None, None], ["2"]),
        (nn.Linear(5, 2), X, [""]),
        (Residual(), X[:, :4], ["blocks.2.2"]),
        (Encoder(), X[:, :4], ["head"]),
    ],
    ids=["linear", "norm behind", "convolution", "alone", "residual", "hidden states"],
)
def test_the_last_layer_wherever_it_is(model, x, heads):
    assert list(seen(model, x)) == heads


def test_a_frozen_head_hides_what_is_before_it():
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    model[2].requires_grad_(False)
    assert seen(model, X) == ("2",)


def test_a_graph_that_cannot_tell_leaves_it_open():
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        assert seen(model, X) is None

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.rest = nn.Linear(5, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2))

        def forward(self, x):
            return checkpoint(self.rest, self.first(x), use_reentrant=True)

    assert seen(Checkpointed(), X) is None
    assert seen(Several(lambda: None), X) is not None  # a loss


def test_what_has_been_seen_stays_where_the_next_output_cannot_tell():
    model, watch = Several(), HeadWatch()
    watch.open(gateable_layers(model))
    watch.close(model(X))
    first = watch.found
    watch.open(gateable_layers(model))
    watch.close(None)
    assert watch.found == first is not None


def test_a_copy_of_a_watched_model_has_hooks_that_do_nothing():
    model, watch = Several(), HeadWatch()
    watch.open(gateable_layers(model))
    copy.deepcopy(model)(X)
    pickle.loads(pickle.dumps(model.body))(X)
    assert not watch._nodes
    assert pickle.loads(pickle.dumps(watch)).found is None
    watch.close(model(X))
    assert set(watch.found) == {"cls_score", "bbox_pred"}


def test_without_names_the_last_layer_is_the_head_be_it_a_convolution():
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 10, 1))
    assert find_heads(body) == ["2"]
    unet = nn.ModuleDict({"down": nn.Conv2d(3, 8, 3), "fc": nn.Linear(8, 8), "outc": body})
    assert find_heads(unet) == ["outc.2"]


def test_of_a_chain_with_a_heads_name_the_last_layer_is_the_head():
    chain = nn.Sequential(
        nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Dropout(), nn.Linear(8, 3)
    )
    model = nn.ModuleDict({"features": nn.Conv2d(3, 8, 3), "classifier": chain})
    assert find_heads(model) == ["classifier.4"]
    gated = [layer.name for layer in find_gated_layers(model)]
    assert gated == ["features", "classifier.0", "classifier.2"]
    auxiliary = nn.ModuleDict({**model, "aux_classifier": nn.Sequential(nn.Conv2d(8, 3, 1))})
    assert find_heads(auxiliary) == ["classifier.4", "aux_classifier.0"]


def test_what_was_seen_joins_what_is_named_and_replaces_a_guess():
    model = Several()
    layers = gateable_layers(model)
    assert head_names(model, layers) == ["body.2"]  # the last in order
    assert head_names(model, layers, seen=["cls_score", "bbox_pred", "gone"]) == [
        "cls_score",
        "bbox_pred",
    ]
    assert head_names(model, layers, "body.0", seen=["cls_score"]) == ["body.0"]
    named = nn.ModuleDict({"score": nn.Linear(4, 4), "box": nn.Linear(4, 4)})
    assert head_names(named, gateable_layers(named), seen=["box"]) == ["score", "box"]


def test_layers_of_an_output_in_a_dataclass_are_seen():
    class Output(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.body = nn.Linear(4, 2), nn.Linear(5, 4)

        def forward(self, x):
            from dataclasses import make_dataclass

            made = make_dataclass("Made", ["logits", "note"])
            return made(self.head(self.body(x)), SimpleNamespace())

    assert seen(Output(), X) == ("head",)
