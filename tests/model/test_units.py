"""Convolutions of all kinds, bilinear layers, attention and recurrent layers as gated layers."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import rnn

from avalanche_mgem.model.gate import RowGate
from avalanche_mgem.model.layers import find_gated_layers, resolve_gated_layers
from avalanche_mgem.model.magnitudes import MagnitudeRecorder, gradient_scores, weight_scores
from avalanche_mgem.restriction.rows import n_masked

# torch says once that oneDNN has no such LSTM.
pytestmark = [
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported"),
    pytest.mark.filterwarnings("ignore:.*trainable parameters are in layers that MIGU"),
]


class Attending(nn.Module):
    """Attention of a target to a source, as a part of a model."""

    def __init__(self, **settings):
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, **settings)

    def forward(self, x, y):
        return self.attention(x, key=y, value=y)[0]


class Recurring(nn.Module):
    """A recurrent layer, or a cell over the steps, of which the output is handed on."""

    def __init__(self, recurrent):
        super().__init__()
        self.recurrent = recurrent

    def forward(self, x):
        if not isinstance(self.recurrent, nn.RNNCellBase):
            return self.recurrent(x)[0]
        state, outputs = None, []
        for step in x:
            state = self.recurrent(step, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(outputs)


CONVOLUTIONS = {
    "conv1d": (nn.Conv1d(4, 6, 3), (2, 4, 5)),
    "depthwise conv1d": (nn.Conv1d(4, 8, 3, groups=4, bias=False), (2, 4, 5)),
    "depthwise conv2d": (nn.Conv2d(4, 4, 3, groups=4), (2, 4, 5, 5)),
    "unbatched conv1d": (nn.Conv1d(4, 6, 3, groups=2), (4, 5)),
    "conv3d": (nn.Conv3d(2, 6, 2, groups=2), (2, 2, 3, 3, 3)),
    "transposed 1d": (nn.ConvTranspose1d(4, 6, 3), (2, 4, 5)),
    "grouped transposed 1d": (nn.ConvTranspose1d(4, 6, 3, groups=2, bias=False), (2, 4, 5)),
    "transposed 2d": (nn.ConvTranspose2d(3, 5, 2, stride=2), (2, 3, 3, 3)),
    "depthwise transposed 2d": (nn.ConvTranspose2d(4, 8, 2, groups=4), (2, 4, 3, 3)),
    "transposed 3d": (nn.ConvTranspose3d(4, 6, 2, groups=2), (2, 4, 2, 2, 2)),
}
ATTENTIONS = {
    "attention": {},
    "without bias": {"bias": False, "batch_first": True},
    "of other sizes": {"kdim": 4, "vdim": 4},
    "of other sizes without bias": {"kdim": 4, "vdim": 4, "bias": False, "batch_first": True},
    "bias of keys": {"add_bias_kv": True, "add_zero_attn": True},
}
RECURRENT = {
    "lstm": lambda: nn.LSTM(4, 5),
    "gru": lambda: nn.GRU(4, 5, bias=False),
    "rnn": lambda: nn.RNN(4, 5, nonlinearity="relu"),
    "both ways": lambda: nn.GRU(4, 5, bidirectional=True),
    "projected": lambda: nn.LSTM(4, 5, proj_size=3),
    "lstm cell": lambda: nn.LSTMCell(4, 5),
    "gru cell": lambda: nn.GRUCell(4, 5),
    "rnn cell": lambda: nn.RNNCell(4, 5),
}


def cases():
    """Name, model and inputs of each; recurrent ones see one step, in which units do not mix."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    for name, (module, shape) in CONVOLUTIONS.items():
        yield name, nn.Sequential(module), (draw(*shape),)
    yield "bilinear", nn.Bilinear(3, 4, 5), (draw(7, 3), draw(7, 4))
    for name, settings in ATTENTIONS.items():
        n, k = 3, settings.get("kdim", 6)
        yield name, Attending(**settings), (draw(n, n, 6), draw(n, n, k))
    for name, make in RECURRENT.items():
        yield name, Recurring(make()), (draw(1, 3, 4),)


CASES = {name: (model, inputs) for name, model, inputs in cases()}
EACH = pytest.mark.parametrize("name", CASES)


def scores_of(model, inputs, **settings):
    recorder = MagnitudeRecorder()
    with recorder.open(find_gated_layers(model, heads=()), **settings):
        model(*inputs)
    return recorder.scores()


def made(name):
    torch.manual_seed(3)
    model, inputs = CASES[name]
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        nn.init.uniform_(parameter, 0.1, 1.0)
    return model, inputs


@EACH
def test_row_i_feeds_unit_i_and_no_other(name):
    model, inputs = made(name)
    before = scores_of(model, inputs)
    assert before
    for layer in find_gated_layers(model, heads=()):
        for unit in range(layer.n_rows):
            changed = copy.deepcopy(model)
            (twin,) = resolve_gated_layers(changed, [layer.name])
            with torch.no_grad():
                for rows in twin.rows:
                    place = torch.unravel_index(torch.tensor(unit), rows.unit_shape)
                    rows.of(rows.parameter)[place] += 0.5
            after = scores_of(changed, inputs)[layer.name]
            assert after.shape == layer.shape
            assert (after != before[layer.name]).flatten().nonzero().flatten().tolist() == [unit]


@EACH
def test_every_weight_is_in_one_row_but_what_is_not_seen(name):
    model, _ = made(name)
    counts = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for layer in find_gated_layers(model, heads=()):
        for rows in layer.rows:
            assert model.get_parameter(rows.name) is rows.parameter
            rows.of(counts[rows.name]).add_(1)
    for parameter_name, count in counts.items():
        # Of a projected LSTM's own hidden units nothing is seen.
        gated = count.ndim > 1 and not parameter_name.endswith(("bias_k", "bias_v"))
        if name == "projected":
            gated = "weight_hr" in parameter_name
        assert (count == (1 if gated else 0)).all(), parameter_name


def attention_outputs(attention, x, y):
    """q, k, v by the formula, and what comes out."""
    if attention.in_proj_weight is None:
        weights = [getattr(attention, f"{which}_proj_weight") for which in "qkv"]
    else:
        weights = attention.in_proj_weight.split(attention.embed_dim)
    biases = [0.0] * 3
    if attention.in_proj_bias is not None:
        biases = attention.in_proj_bias.split(attention.embed_dim)
    for which, weight, bias, given in zip("qkv", weights, biases, (x, y, y), strict=True):
        yield f"in_proj.{which}", given @ weight.T + bias
    yield "out_proj", attention(x, y, y)[0]


@pytest.mark.parametrize("name", ATTENTIONS)
def test_of_attention_there_are_queries_keys_values_and_output(name):
    model, inputs = made(name)
    expected = {
        f"attention.{which}": y.abs().flatten(0, -2).mean(0)
        for which, y in attention_outputs(model.attention, *inputs)
    }
    scores = scores_of(model, inputs)
    if "attention.in_proj" in scores:
        together = scores.pop("attention.in_proj")
        scores |= {f"attention.in_proj.{w}": s for w, s in zip("qkv", together, strict=True)}
    assert scores.keys() == expected.keys()
    for which, score in scores.items():
        torch.testing.assert_close(score, expected[which])


@pytest.mark.parametrize("batch_first", [True, False])
def test_padding_of_attention_and_recurrent_layers(batch_first):
    generator = torch.Generator().manual_seed(2)
    x, mask = torch.randn(2, 5, 6, generator=generator), torch.tensor([[1, 1, 1, 0, 0], [1] * 5])
    tokens = x if batch_first else x.transpose(0, 1)
    encoder = nn.TransformerEncoderLayer(6, 2, 8, batch_first=batch_first, dropout=0.0)
    scores = scores_of(encoder, (tokens,), token_mask=mask)
    attention = encoder.self_attn
    q = functional.linear(x[mask.bool()], attention.in_proj_weight[:6], attention.in_proj_bias[:6])
    torch.testing.assert_close(scores["self_attn.in_proj"][0], q.abs().mean(0))
    assert set(scores) == {"self_attn.in_proj", "self_attn.out_proj", "linear1", "linear2"}
    lstm = nn.LSTM(6, 4, batch_first=batch_first)
    hidden = lstm(tokens)[0]
    hidden = hidden if batch_first else hidden.transpose(0, 1)
    scores = scores_of(Recurring(lstm), (tokens,), token_mask=mask)
    torch.testing.assert_close(scores["recurrent.l0"], hidden[mask.bool()].abs().mean(0))


def test_a_stack_shows_its_last_layer_at_every_step_and_others_at_the_last():
    lstm, x = nn.LSTM(4, 3, num_layers=2, bidirectional=True), torch.randn(6, 2, 4)
    lower = nn.LSTM(4, 3, bidirectional=True)
    lower.load_state_dict({k: v for k, v in lstm.state_dict().items() if "l0" in k})
    output = lstm(x)[0]
    below = lower(x)[0]
    scores = scores_of(Recurring(lstm), (x,))
    ends = {"l0": below[-1, :, :3], "l0_reverse": below[0, :, 3:]}
    ends |= {"l1": output[..., :3].flatten(0, 1), "l1_reverse": output[..., 3:].flatten(0, 1)}
    assert list(scores) == [f"recurrent.{place}" for place in ends]
    for place, hidden in ends.items():
        torch.testing.assert_close(scores[f"recurrent.{place}"], hidden.abs().mean(0))


def test_packed_sequences_count_their_own_steps():
    gru, lengths = nn.GRU(4, 3), torch.tensor([5, 2])
    x = torch.randn(5, 2, 4)
    model = Recurring(gru)
    scores = scores_of(model, (rnn.pack_padded_sequence(x, lengths),))
    padded = rnn.pad_packed_sequence(gru(rnn.pack_padded_sequence(x, lengths))[0])[0]
    hidden = torch.cat([padded[:5, 0], padded[:2, 1]])
    torch.testing.assert_close(scores["recurrent.l0"], hidden.abs().mean(0))


# Steps.


def loss_of(model, inputs):
    return model(*inputs).square().sum()


def gated_steps(model, inputs, optimizer, fraction, freeze, score="output", n_steps=3):
    gate = RowGate(fraction, heads=(), freeze=freeze, score=score, seed=0)
    gate.find(model)
    for _ in range(n_steps):
        optimizer.zero_grad()
        gate.open(model)
        loss = loss_of(model, inputs)
        gate.close()
        loss.backward()
        gate.mask(model)
        gate.hold(model, optimizer)
        yield gate
        gate.release()
        gate.reset()


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)


@pytest.mark.cover
@EACH
@pytest.mark.parametrize("score", ["output", "gradient", "weight", "random"])
def test_masked_rows_do_not_move_by_a_bit(name, score):
    model, inputs = made(name)
    optimizer = adamw(model)
    for gate in gated_steps(model, inputs, optimizer, 0.6, "update", score):
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        layers = resolve_gated_layers(model, gate.last_mask)
        assert layers
        for layer in layers:
            kept = gate.last_mask[layer.name]
            assert kept.shape == layer.shape
            assert ((~kept).sum(-1) == n_masked(0.6, layer.shape[-1])).all()
            assert n_masked(0.6, layer.shape[-1]) > 0
        optimizer.step()
        for layer in layers:
            kept = gate.last_mask[layer.name]
            for rows in layer.rows:
                old, new = rows.of(before[rows.name]), rows.of(rows.parameter.detach())
                still, kept_ = (m.view(rows.unit_shape) for m in (~kept, kept))
                assert torch.equal(old[still], new[still])
                assert not rows.of(rows.parameter.grad)[still].any()
                assert (old[kept_] != new[kept_]).any()
        biases = [n for n in before if "bias" in n]
        moved = {n: bool((before[n] != model.get_parameter(n)).any()) for n in biases}
        assert all(moved.values())


@EACH
@pytest.mark.parametrize("freeze", ["gradient", "update"])
def test_with_nothing_masked_steps_are_plain_to_the_bit(name, freeze):
    model, inputs = made(name)
    plain = copy.deepcopy(model)
    optimizer, other = adamw(model), adamw(plain)
    for gate in gated_steps(model, inputs, optimizer, 0.0, freeze):
        other.zero_grad()
        loss_of(plain, inputs).backward()
        optimizer.step()
        other.step()
        assert all(mask.all() for mask in gate.last_mask.values())
    for one, two in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, two)


@EACH
def test_other_scores_are_means_over_each_unit(name):
    model, inputs = made(name)
    loss_of(model, inputs).backward()
    layers = find_gated_layers(model, heads=())
    weights, slopes = weight_scores(layers), gradient_scores(layers)
    for layer in layers:
        for scores, of in ((weights, lambda p: p.detach()), (slopes, lambda p: p.grad)):
            means = []
            for rows in layer.rows:
                view = rows.of(of(rows.parameter)).abs()
                flat = view.reshape(math.prod(rows.unit_shape), -1)
                means.append(flat.mean(1))
            expected = torch.stack(means).mean(0).view(layer.shape)
            torch.testing.assert_close(scores[layer.name], expected)


def test_what_subclasses_compute_is_not_guessed():
    class Mine(nn.MultiheadAttention):
        def forward(self, x):
            return x

    class Counting(nn.LSTM):
        def forward(self, x):
            return x

    model = nn.Sequential(nn.Linear(4, 4), Mine(4, 2), Counting(4, 4))
    assert [layer.name for layer in find_gated_layers(model, heads=())] == ["0"]


def test_all_linear_and_names_of_parts():
    model = nn.ModuleDict(
        {
            "conv": nn.Conv1d(3, 3, 1),
            "up": nn.ConvTranspose2d(3, 3, 1),
            "lstm": nn.LSTM(3, 3),
            "attention": nn.MultiheadAttention(4, 2),
            "pair": nn.Bilinear(3, 3, 3),
            "linear": nn.Linear(3, 3),
            "head": nn.Linear(3, 2),
        }
    )

    def names(target):
        return [layer.name for layer in find_gated_layers(model, target)]

    both = ["attention.in_proj", "attention.out_proj"]
    assert names("all-linear") == [*both, "pair", "linear"]
    assert names(["attention"]) == both
    assert names(["in_proj", "lstm"]) == ["lstm.l0", "attention.in_proj"]
    assert names(["out_proj"]) == ["attention.out_proj"]
    assert names(r"attention\.out.*") == ["attention.out_proj"]
    assert len(names(None)) == 7


@pytest.mark.parametrize("lazy", [nn.LazyConv1d(6, 2), nn.LazyConvTranspose2d(6, 2, groups=2)])
def test_lazy_layers_are_found_before_they_have_a_shape(lazy):
    model = nn.Sequential(lazy, nn.ReLU())
    gate = RowGate(0.5, heads=())
    gate.find(model)
    gate.open(model)
    shape = (2, 4, 5) if isinstance(lazy, nn.Conv1d) else (2, 4, 3, 3)
    model(torch.randn(shape)).sum().backward()
    gate.close()
    gate.mask(model)
    assert gate.last_mask["0"].shape == (6,)
