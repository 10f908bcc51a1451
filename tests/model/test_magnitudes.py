"""Recorded magnitudes are those of a pass for each layer; a window leaves nothing behind."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lookalikes import Conv1D, LanguageModel, LoraLinear, with_lora
from torch import nn
from torch.utils.checkpoint import checkpoint

from avalanche_mgem.model.layers import find_gated_layers
from avalanche_mgem.model.magnitudes import (
    MagnitudeRecorder,
    gradient_scores,
    random_scores,
    weight_scores,
)


def conv_net():
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5))
    return nn.Sequential(net, nn.ReLU(), nn.Linear(5, 2))


MODELS = {
    "language model": (LanguageModel, lambda: torch.randint(7, (3, 5))),
    "lora": (
        lambda: with_lora(LanguageModel(), ["q_proj", "up"], {"old": 2, "new": 3}),
        lambda: torch.randint(7, (3, 5)),
    ),
    "images": (conv_net, lambda: torch.randn(4, 1, 4, 4)),
    "conv1d": (
        lambda: nn.Sequential(Conv1D(6, 4), LoraLinear(Conv1D(5, 6), {"a": 2}), nn.Linear(5, 2)),
        lambda: torch.randn(3, 2, 4),
    ),
}


def hooks_of(model):
    return [hook for module in model.modules() for hook in module._forward_hooks.values()]


def recorded(model, *inputs, **settings):
    recorder = MagnitudeRecorder()
    for x in inputs:
        with recorder.open(find_gated_layers(model), **settings):
            model(x)
    return recorder.scores()


def pass_by_pass(model, layer, inputs, normalize="none"):
    """The mean magnitude of one layer, from forward passes of its own."""
    outputs = []
    handle = layer.module.register_forward_hook(lambda _, __, output: outputs.append(output))
    for x in inputs:
        model(x)
    handle.remove()
    tokens = [y.detach().movedim(layer.channel_dim, -1).flatten(0, -2).double() for y in outputs]
    size = torch.cat(tokens).abs()
    return (size / size.sum(1, keepdim=True) if normalize == "token" else size).mean(0)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("normalize", ["none", "token"])
@pytest.mark.parametrize("passes", [1, 3])
def test_scores_are_those_of_a_pass_for_each_layer(name, normalize, passes):
    make, draw = MODELS[name]
    model, inputs = make(), [draw() for _ in range(passes)]
    layers, recorder = find_gated_layers(model), MagnitudeRecorder(normalize)
    for x in inputs:
        with recorder.open(layers):
            model(x)
    assert recorder.scores().keys() == {layer.name for layer in layers}
    for layer in layers:
        score = recorder.scores()[layer.name]
        assert score.dtype == torch.float32
        assert score.shape == (layer.n_rows,)
        expected = pass_by_pass(model, layer, inputs, normalize)
        torch.testing.assert_close(score.double(), expected, rtol=1e-5, atol=1e-7)


def test_of_lora_a_counts_alone_and_b_with_the_base():
    model = nn.Sequential(LoraLinear(nn.Linear(4, 6), {"a": 2, "b": 3}), nn.Linear(6, 2))
    for pair in model[0].lora_B.values():
        nn.init.zeros_(pair.weight)
    x = torch.randn(5, 4)
    scores = recorded(model, x)
    base = model[0].base_layer(x).abs().mean(0)
    torch.testing.assert_close(scores["0"], base)  # B starts from zero: the base is all there is
    for adapter in "ab":
        own = model[0].lora_A[adapter](x).abs().mean(0)
        torch.testing.assert_close(scores[f"0.lora_A.{adapter}"], own)


@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 2**32))
def test_padding_is_ignored_where_there_are_tokens(n, length, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    x, mask = torch.randn(n, length, 3), torch.randint(2, (n, length))
    mask[0, 0] = 1
    scores = recorded(model, x, token_mask=mask)
    for name, score in recorded(model, x[mask.bool()]).items():
        torch.testing.assert_close(scores[name], score)


def test_outputs_without_tokens_count_whole():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.pool = nn.Linear(3, 3), nn.Linear(3, 3)
            self.conv, self.head = nn.Conv2d(1, 2, 1), nn.Linear(3, 2)

        def forward(self, x):
            pooled = self.pool(self.words(x)[:, 0])
            return self.head(pooled) + self.conv(x[:, None]).mean()

    model, x = Pooled(), torch.randn(4, 2, 3)
    mask = torch.tensor([[1, 0]] * 4)
    whole, masked = recorded(model, x), recorded(model, x, token_mask=mask)
    assert torch.equal(whole["pool"], masked["pool"])
    assert torch.equal(whole["conv"], masked["conv"])
    torch.testing.assert_close(masked["words"], model.words(x[:, 0]).abs().mean(0))


def test_where_no_token_counts_scores_are_zero():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    scores = recorded(model, torch.randn(2, 5, 3), token_mask=torch.zeros(2, 5))
    assert scores["0"].tolist() == [0.0] * 4


def test_sums_go_on_until_reset():
    model, first, second = conv_net(), torch.randn(2, 1, 4, 4), torch.randn(6, 1, 4, 4)
    recorder = MagnitudeRecorder()
    for x in (first, second):
        with recorder.open(find_gated_layers(model)):
            model(x)
    for name, score in recorded(model, torch.cat([first, second])).items():
        torch.testing.assert_close(recorder.scores()[name], score)
    recorder.reset()
    assert recorder.scores() == {}


def test_a_layer_that_has_grown_begins_anew():
    model, recorder = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), MagnitudeRecorder()
    for width in (2, 5):
        model[1] = nn.Linear(4, width)
        with recorder.open(find_gated_layers(model, heads=())):
            model(torch.ones(1, 3))
    assert recorder.scores()["1"].shape == (5,)
    assert (recorder.counts["0"], recorder.counts["1"]) == (2, 1)


def test_a_layer_that_is_not_called_has_no_score():
    model = nn.ModuleDict({"used": nn.Linear(3, 2), "other": nn.Linear(3, 2)})
    recorder = MagnitudeRecorder()
    with recorder.open(find_gated_layers(model, heads=())):
        model["used"](torch.randn(4, 3))
    assert list(recorder.scores()) == ["used"]


# The window.


def test_a_window_leaves_no_hook_and_not_those_of_others():
    model = conv_net()
    handle = model[2].register_forward_hook(lambda *_: None)
    before = hooks_of(model)
    recorder = MagnitudeRecorder()
    with recorder.open(find_gated_layers(model)):
        assert len(hooks_of(model)) == 3
    assert hooks_of(model) == before
    recorder.open(find_gated_layers(model))
    recorder.open(find_gated_layers(model))
    assert len(hooks_of(model)) == 3
    recorder.close()
    recorder.close()
    assert hooks_of(model) == before
    handle.remove()


def test_no_hook_is_left_after_an_error():
    model, recorder = conv_net(), MagnitudeRecorder()
    with pytest.raises(RuntimeError), recorder.open(find_gated_layers(model)):
        model(torch.randn(4, 9))
    assert not hooks_of(model)
    with pytest.raises(ValueError, match="oops"), recorder.open(find_gated_layers(model)):
        raise ValueError("oops")
    assert not hooks_of(model)


def test_a_guarded_window_closes_itself_on_an_error():
    model, recorder = conv_net(), MagnitudeRecorder()
    recorder.open(find_gated_layers(model), guard=model)
    model(torch.randn(4, 1, 4, 4))
    assert len(hooks_of(model)) == 3
    with pytest.raises(RuntimeError):
        model(torch.randn(4, 9))
    assert not hooks_of(model)


def test_what_happens_outside_is_not_counted():
    model, x = conv_net(), torch.randn(4, 1, 4, 4)
    recorder = MagnitudeRecorder()
    model(x)
    with recorder.open(find_gated_layers(model)):
        model(x)
    model(x)
    assert recorder.counts == {"0.0": 16, "0.3": 4}


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointed_layers_count_once(use_reentrant):
    model, x = (
        nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)),
        torch.randn(5, 3, requires_grad=True),
    )
    recorder = MagnitudeRecorder()
    with recorder.open(find_gated_layers(model)):
        output = checkpoint(model, x, use_reentrant=use_reentrant)
    output.sum().backward()
    assert recorder.counts == {"0": 5}
    assert torch.equal(recorder.scores()["0"], recorded(model, x)["0"])


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"]
)
def test_copies_have_the_sums_and_no_window(copied):
    model, x = conv_net(), torch.randn(4, 1, 4, 4)
    recorder = MagnitudeRecorder("token").open(find_gated_layers(model), guard=model)
    model(x)
    twin, twins_recorder = copied(model), copied(recorder)
    scores = recorder.scores()
    assert {hook.__name__ for hook in hooks_of(twin)} == {"_do_nothing"}
    assert not twins_recorder._hooks
    twin(x)
    assert twins_recorder.normalize == "token"
    for name, score in scores.items():
        assert torch.equal(recorder.scores()[name], score)
        assert torch.equal(twins_recorder.scores()[name], score)
    model(x)
    assert recorder.counts["0.3"] == 8
    recorder.close()
    assert not hooks_of(model)
    copied((model, recorder))


def test_recording_changes_nothing_and_holds_no_graph():
    model, x = conv_net(), torch.randn(4, 1, 4, 4)
    plain = model(x)
    recorder, state = MagnitudeRecorder(), torch.get_rng_state()
    with recorder.open(find_gated_layers(model)):
        assert torch.equal(model(x), plain)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(score.requires_grad for score in recorder.scores().values())


def test_inference_mode_and_training_may_alternate():
    model, x, recorder = conv_net(), torch.randn(4, 1, 4, 4), MagnitudeRecorder()
    with recorder.open(find_gated_layers(model)):
        with torch.inference_mode():
            model(x)
        model(x)
    assert recorder.counts["0.3"] == 8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(dtype):
    model, x = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 2)), torch.randn(64, 8)
    full, recorder = recorded(model, x)["0"], MagnitudeRecorder("token")
    with recorder.open(find_gated_layers(model)), torch.autocast("cpu", dtype=dtype):
        model(x)
    assert recorder.scores()["0"].dtype == torch.float32
    torch.testing.assert_close(recorder.scores()["0"].sum(), torch.tensor(1.0))
    half = recorded(model.to(dtype), x.to(dtype))["0"]
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=0.02, atol=0.01)


def test_an_unknown_normalization():
    with pytest.raises(ValueError, match="normalize: unknown 'tokens'"):
        MagnitudeRecorder("tokens")


# Scores of other kinds.


@pytest.mark.parametrize("name", MODELS)
def test_other_scores_are_of_the_same_layers_and_shapes(name):
    make, draw = MODELS[name]
    model = make()
    layers = find_gated_layers(model)
    assert gradient_scores(layers) == {}
    model(draw()).square().sum().backward()
    weights, slopes = weight_scores(layers), gradient_scores(layers)
    chance = random_scores(layers, torch.Generator().manual_seed(1))
    for layer in layers:
        for scores, of in ((weights, lambda p: p.detach()), (slopes, lambda p: p.grad)):
            means = [r.of(of(r.parameter)).flatten(1).abs().mean(1) for r in layer.rows]
            torch.testing.assert_close(scores[layer.name], sum(means) / len(means))
        assert chance[layer.name].shape == (layer.n_rows,)
    again = random_scores(layers, torch.Generator().manual_seed(1))
    assert all(torch.equal(again[name], score) for name, score in chance.items())


def test_random_scores_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    random_scores(find_gated_layers(conv_net()), torch.Generator())
    net_state = torch.get_rng_state()
    torch.set_rng_state(state)
    conv_net()
    assert torch.equal(torch.get_rng_state(), net_state)
