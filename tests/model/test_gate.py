"""The gate where its model is used in another way than usual."""

import pytest
import torch
from torch import nn

from avalanche_mgem.model.gate import RowGate


def make_model():
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3))


class Tied(nn.Module):
    """A head that shares its weight with the embedding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.body = nn.Linear(4, 4)
        self.lm_head = nn.Linear(4, 9, bias=False)
        self.lm_head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.lm_head(self.body(self.embedding(tokens)))


class InARow(nn.Module):
    """A layer that is handed all tokens in a row, as OPT's are."""

    def __init__(self):
        super().__init__()
        self.layer, self.classifier = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x, attention_mask):
        hidden = self.layer(x.reshape(-1, 4)).view(*x.shape[:2], 6)
        return self.classifier(hidden.mean(1))


@pytest.mark.parametrize("compiled", ["inner", "whole"])
def test_outputs_of_a_compiled_model_are_refused(compiled):
    model = make_model()
    if compiled == "inner":
        model[2].compile(backend="eager")
    else:
        model = torch.compile(model, backend="eager")
    with pytest.raises(ValueError, match=r"model is compiled .*score='output'"):
        RowGate(0.5).find(model)
    RowGate(0.5, score="gradient").find(model)


def test_a_step_in_which_no_output_was_seen_is_no_free_one():
    model, gate = make_model(), RowGate(0.5)
    gate.find(model)
    gate.open(model)
    gate.close()
    with pytest.raises(RuntimeError, match=r"no output of a gated layer .*\(layers: 0, 2\)"):
        gate.mask(model)


def test_layers_that_are_all_frozen_need_no_output():
    model, gate = make_model(), RowGate(0.5)
    gate.find(model)
    for parameter in (*model[0].parameters(), *model[2].parameters()):
        parameter.requires_grad_(False)
    gate.begin()
    gate.mask(model)
    assert gate.last_mask == {}


def test_each_step_draws_anew_whether_the_model_was_called_or_not():
    model, gate, seen = make_model(), RowGate(0.5, score="random", seed=3), []
    gate.find(model)
    for _ in range(3):
        gate.begin()
        gate.mask(model)
        seen.append(gate.last_mask["0"].tolist())
        gate.reset()
    assert len({tuple(mask) for mask in seen}) == 3
    assert gate.draws == 3


def test_a_head_that_is_tied_goes_on_training():
    model, gate = Tied(), RowGate(0.5, ungated="freeze", target_modules=["body"])
    gate.find(model)
    gate.open(model)
    model(torch.tensor([[1, 2]])).sum().backward()
    gate.close()
    gate.mask(model)
    assert model.lm_head.weight.grad is not None
    assert model.body.bias.grad is None


def test_tokens_in_a_row_are_told_from_padding():
    model, gate = InARow(), RowGate(0.5, ignore_padding=True)
    x, mask = torch.randn(2, 3, 4), torch.tensor([[1, 1, 0], [1, 0, 0]])
    gate.find(model)
    gate.open(model, {"x": x, "attention_mask": mask})
    model(x, mask)
    gate.close()
    gate.look(model)
    expected = model.layer(x[mask == 1]).detach().abs().mean(0)
    torch.testing.assert_close(gate.last_scores["layer"], expected)


@pytest.mark.parametrize("batch", [torch.zeros(2, 6), {"x": torch.zeros(2, 6)}], ids=["x", "named"])
def test_padding_that_nobody_tells_cannot_be_ignored(batch):
    model, gate = make_model(), RowGate(0.5, ignore_padding=True)
    gate.find(model)
    with pytest.raises(ValueError, match=r"ignore_padding=True needs .* attention_mask"):
        gate.open(model, batch)


def test_an_interrupted_pass_is_cleaned_up_by_the_next_find():
    model, gate = make_model(), RowGate(0.5)

    def interrupt(*arguments):
        raise KeyboardInterrupt

    gate.find(model)
    gate.open(model)
    handle = model[4].register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(torch.zeros(2, 6))
    handle.remove()
    gate.find(model)
    assert not any(module._forward_hooks for module in model.modules())


def test_the_error_of_a_pass_is_its_own_beside_hooks_of_others():
    model, gate = make_model(), RowGate(0.5)
    gate.find(model)
    gate.open(model)
    model.register_forward_hook(lambda *arguments: None)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(torch.zeros(2, 5))
    gate.close()
    assert len(model._forward_hooks) == 1
    assert not any(layer._forward_hooks for layer in model)


def test_with_nothing_masked_a_score_may_be_anything():
    model, gate = make_model(), RowGate(0.0)
    gate.find(model)
    gate.open(model)
    model(torch.full((2, 6), float("nan")))
    gate.close()
    gate.mask(model)
    assert all(mask.all() for mask in gate.last_mask.values())


def test_a_gate_of_an_older_checkpoint_is_read():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    gate = RowGate(0.5, heads=["1"])
    gate.find(model)
    flat = {**vars(gate), **vars(gate._of), "_heads_unseen": False, "_hold": None, "_hidden": []}
    del flat["_of"], flat["heads_unseen"]
    older = object.__new__(RowGate)
    older.__setstate__(flat)
    assert older.names == ["0"]
    assert older.heads == ("1",)
    older.find(model)
    older.open(model)
    older.close(model, model(torch.randn(2, 3)))
    assert int(older.kept(model)["0"].sum()) == 2
