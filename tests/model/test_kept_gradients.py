"""Gradients of kept rows alone, against whole gradients that are masked afterwards."""

import contextlib
import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from avalanche_mgem.model import kept_gradients, kept_products
from avalanche_mgem.model.gate import RowGate

FUSED = "fused"


@pytest.fixture(autouse=True)
def whatever_the_size(monkeypatch):
    """Let the tiniest layer leave rows out."""
    monkeypatch.setattr(kept_gradients, "_A_MOVE", 0)
    monkeypatch.setattr(kept_gradients, "_A_CALL", -1)


def step(model, x, fraction, *, whole="", loss=None, passes=1, backward=None, **arguments):
    """The gate and the gradients after one step of a copy of the model, or of what makes one."""
    model = copy.deepcopy(model) if isinstance(model, nn.Module) else model()
    gate = RowGate(fraction, heads=arguments.pop("heads", ["head"]), **arguments)
    gate.find(model)
    total = 0.0
    for _ in range(passes):
        gate.open(model, whole=whole)
        output = model(x)
        gate.close(model, output)
        total = total + (output.float().square().mean() if loss is None else loss(output, model))
    (backward or torch.Tensor.backward)(total)
    gate.mask(model)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in _ours(model))
    grown = {name: p.grad for name, p in model.named_parameters()}
    return gate, {name: None if grad is None else grad.detach() for name, grad in grown.items()}


def _ours(model):
    return [module for module in model.modules() if not hasattr(module, "watched_by_others")]


def compare(model, x, fraction, expected, rounding=1e-5, **arguments):
    """Check that both ways agree, and which was taken of each layer."""
    gate, gradients = step(model, x, fraction, **arguments)
    other, whole = step(model, x, fraction, **{**arguments, "whole": "asked for"})
    assert set(other.last_path.values()) == {"masked: asked for"}
    assert {name: path.partition(":")[0] for name, path in gate.last_path.items()} == {
        name: path.partition(":")[0] for name, path in expected.items()
    }, gate.last_path
    for name, path in expected.items():
        assert path in gate.last_path[name]
        assert torch.equal(gate.last_mask[name], other.last_mask[name])
        assert torch.equal(gate.last_scores[name], other.last_scores[name])
    for name, gradient in whole.items():
        if gradient is None:
            assert gradients[name] is None
            continue
        scale = float(gradient.abs().max()) + 1e-12
        torch.testing.assert_close(gradients[name], gradient, rtol=0, atol=rounding * scale)
        if path_of(gate, name) == FUSED:
            dim = 1 if "conv1d" in name else 0
            masked = ~gate.last_mask[name.removesuffix(".weight")]
            assert not gradients[name].index_select(dim, masked.nonzero()[:, 0]).any()
        elif not any(path in (FUSED, "masked: create_graph") for path in gate.last_path.values()):
            assert torch.equal(gradients[name], gradient)
        assert gradients[name].stride() == gradient.stride()
    return gate


def path_of(gate, parameter):
    return gate.last_path.get(parameter.removesuffix(".weight"))


class Net(nn.Module):
    """Some layers, and a head."""

    def __init__(self, *layers, width):
        super().__init__()
        for number, layer in enumerate(layers):
            self.add_module(f"layer{number}", layer)
        self.layers = layers
        self.head = nn.Linear(width, 2)

    def forward(self, x):
        for name, module in self.named_children():
            if name != "head":
                x = module(x)
        return self.head(x.flatten(2).mean(2) if x.ndim == 4 else x)


def linear_net(n_in, widths, bias=True):
    sizes = [n_in, *widths]
    layers = [nn.Linear(a, b, bias=bias) for a, b in itertools.pairwise(sizes)]
    net = Net(
        *[each for layer in layers for each in (layer, nn.ReLU(inplace=True))], width=sizes[-1]
    )
    return net, [f"layer{2 * i}" for i in range(len(layers))]


@settings(max_examples=25)
@given(
    n_in=st.integers(1, 9),
    widths=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    tokens=st.lists(st.integers(1, 5), min_size=1, max_size=2),
    fraction=st.floats(0.05, 0.99),
    bias=st.booleans(),
    ties=st.booleans(),
    half=st.sampled_from([None, torch.bfloat16]),
)
def test_linear_layers_of_any_shape(n_in, widths, tokens, fraction, bias, ties, half):
    model, names = linear_net(n_in, widths, bias)
    if ties:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.5)
    x = torch.randn(*tokens, n_in)
    cast = contextlib.nullcontext() if half is None else torch.autocast("cpu", dtype=half)
    with cast:
        rounding = 1e-5 if half is None else 2e-2
        compare(model, x, fraction, dict.fromkeys(names, FUSED), rounding)


def test_the_input_has_the_same_gradient_to_the_bit():
    (model, _), x = linear_net(6, [8, 5]), torch.randn(3, 4, 6)
    ends = []
    for whole in ("", "asked for"):
        own = x.clone().requires_grad_()
        step(model, own, 0.5, whole=whole)
        ends.append(own.grad)
    assert torch.equal(*ends)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("half", [None, torch.bfloat16])
def test_convolutions(half, channels_last):
    kinds = [
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 12, (3, 1), stride=2, dilation=(1, 2), bias=False),
        nn.Conv2d(12, 12, 3, padding="same"),
        nn.Conv2d(12, 8, 1, groups=4),
    ]
    model = Net(*kinds, width=8)
    x = torch.randn(4, 3, 9, 9)
    if channels_last:
        model, x = (each.to(memory_format=torch.channels_last) for each in (model, x))
    plain = "masked: no plain Linear, Conv2d or Conv1D: Conv2d"
    expected = {"layer0": FUSED, "layer2": FUSED, "layer3": plain, "layer4": plain}
    with contextlib.nullcontext() if half is None else torch.autocast("cpu", dtype=half):
        compare(model, x, 0.6, expected, 1e-4 if half is None else 3e-2)


def test_conv1d_of_transformers():
    layer = pytest.importorskip("transformers.pytorch_utils").Conv1D(8, 6)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1d, self.head = layer, nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.conv1d(x))

    compare(Model(), torch.randn(3, 4, 6), 0.6, {"conv1d": FUSED})


def test_float16_is_masked_as_rows_that_overflow_must_be_seen():
    model, names = linear_net(6, [8])
    with torch.autocast("cpu", dtype=torch.float16):
        compare(model, torch.randn(4, 6), 0.5, dict.fromkeys(names, "masked: float16"))


def test_a_weight_in_float16_is_masked_too():
    model, names = linear_net(6, [8])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        compare(model.half(), torch.randn(4, 6), 0.5, dict.fromkeys(names, "masked: float16"))


class Used(nn.Module):
    """A layer `a` and a layer `b`, used as the case says."""

    def __init__(self, forward, prepare=None):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        if prepare is not None:
            prepare(self)
        self.used = forward

    def forward(self, x):
        return self.head(self.used(self, x))


def plain(model, x):
    return model.b(model.a(x).relu())


def checkpointed(reentrant):
    def forward(model, x):
        own = x.clone().requires_grad_()
        return model.b(checkpoint(model.a, own, use_reentrant=reentrant))

    return forward


def hooked(**hooks):
    def prepare(model):
        model.a.watched_by_others = True
        for register, hook in hooks.items():
            owner = model.a.weight if "weight_" in register else model.a
            getattr(owner, register.removeprefix("weight_"))(hook)

    return prepare


def tie(model):
    model.b.weight = model.a.weight


def with_own_forward(model):
    model.a.forward = lambda x: nn.functional.linear(x, model.a.weight, model.a.bias) * 2


def nothing(*arguments):
    return None


class Doubled(torch.Tensor):
    """A tensor of another class."""


def saved(model, x):
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        return model.b(model.a(x))


def by_keyword(model, x):
    return model.b(model.a(input=x))


def under_no_grad(model, x):
    with torch.no_grad():
        y = model.a(x)
    return model.b(y)


CASES = {
    "plain": ((plain,), FUSED, FUSED),
    "one input of two layers": ((lambda m, x: m.a(x) * m.b(x),), FUSED, FUSED),
    "frozen input": ((lambda m, x: m.b(m.a(x).detach()),), "no gradient", FUSED),
    "called twice": ((lambda m, x: m.b(m.a(m.a(x))),), "called more than once", FUSED),
    "checkpoint": ((checkpointed(False),), "activation checkpointing", FUSED),
    "reentrant": ((checkpointed(True),), "no gradient is recorded", FUSED),
    "saved": ((saved,), "activation checkpointing", "activation checkpointing"),
    "by keyword": ((by_keyword,), "not one tensor", FUSED),
    "no grad": ((under_no_grad,), "no gradient is recorded", FUSED),
    "hook": ((plain, hooked(register_forward_hook=nothing)), "forward hooks", FUSED),
    "pre-hook": ((plain, hooked(register_forward_pre_hook=nothing)), "forward hooks", FUSED),
    "backward": ((plain, hooked(register_full_backward_pre_hook=nothing)), "backward hooks", FUSED),
    "of weight": ((plain, hooked(weight_register_hook=nothing)), "backward hooks", FUSED),
    "own forward": ((plain, with_own_forward), "no plain Linear", FUSED),
    "parametrised": (
        (plain, lambda m: parametrizations.weight_norm(m.a)),
        "no plain Linear",
        FUSED,
    ),
    "subclass": (
        (lambda m, x: m.b(m.a(x.as_subclass(Doubled)).as_subclass(torch.Tensor)),),
        "not one tensor",
        FUSED,
    ),
    "of one token": ((lambda m, x: m.b(m.a(x[0, 0])[None]),), "no plain tensor", FUSED),
    "penalty": (
        (lambda m, x: m.b(m.a(x)) + 0.1 * m.a.weight.square().sum(),),
        "other parts",
        FUSED,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_case_takes_its_path_with_the_same_result(case):
    (arguments, *paths), x = CASES[case], torch.randn(3, 4, 6)

    def model():
        torch.manual_seed(1)
        return Used(*arguments)

    gate, gradients = step(model, x, 0.5)
    other, whole = step(model, x, 0.5, whole="asked for")
    for name, path in zip("ab", paths, strict=True):
        assert path in gate.last_path[name], gate.last_path
        assert (path == FUSED) == (gate.last_path[name] == FUSED)
        assert torch.equal(gate.last_mask[name], other.last_mask[name])
    for name, gradient in whole.items():
        if gradient is not None:
            torch.testing.assert_close(gradients[name], gradient)
            masked = gradient == 0
            assert not gradients[name][masked].any()


def test_a_weight_of_two_layers_is_masked_by_both():
    gate = compare(
        Used(plain, tie),
        torch.randn(3, 6),
        0.5,
        dict.fromkeys("ab", "masked: its weight is another layer's too"),
        target_modules="all-linear",
    )
    assert set(gate.last_mask) == {"a", "b"}


def test_several_passes_before_one_mask():
    reason = "masked: several forward passes before one mask"
    compare(Used(plain), torch.randn(3, 6), 0.5, dict.fromkeys("ab", reason), passes=2)


def test_a_gradient_that_is_differentiated_again_is_whole():
    def twice(total):
        total.backward(create_graph=True)

    reason = dict.fromkeys("ab", "masked: create_graph")
    with pytest.warns(UserWarning, match="create_graph"):
        compare(Used(plain), torch.randn(3, 6), 0.5, reason, backward=twice)


def test_a_penalty_on_the_gradient_has_its_second_derivative():
    def loss(output, model):
        total = output.square().mean()
        slopes = torch.autograd.grad(total, list(model.parameters()), create_graph=True)
        return total + torch.stack([slope.square().sum() for slope in slopes]).sum()

    reason = dict.fromkeys("ab", "masked: create_graph")
    compare(Used(plain), torch.randn(3, 6), 0.5, reason, loss=loss)


def test_a_second_backward_pass_of_one_graph_adds_up():
    def twice(total):
        total.backward(retain_graph=True)
        total.backward()

    reason = dict.fromkeys("ab", "masked: its gradient has other parts")
    compare(Used(plain), torch.randn(3, 6), 0.5, reason, backward=twice)


def test_gradients_that_are_there_before_are_masked_too():
    def model():
        torch.manual_seed(1)
        made = Used(plain)
        for parameter in made.parameters():
            parameter.grad = torch.ones_like(parameter)
        return made

    reason = dict.fromkeys("ab", "masked: its gradient has other parts")
    compare(model, torch.randn(3, 6), 0.5, reason)


def test_gradients_that_are_made_again_are_masked_again():
    model, x, gate = Used(plain), torch.randn(3, 6), RowGate(0.5, heads=["head"])
    gate.find(model)
    gate.open(model, whole="")
    output = model(x)
    gate.close(model, output)
    output.sum().backward()
    gate.mask(model)
    model.zero_grad()
    model(x).sum().backward()
    gate.mask(model)
    assert not model.a.weight.grad[~gate.last_mask["a"]].any()
    assert gate.last_path == {"a": FUSED, "b": FUSED}


def test_a_pass_that_follows_a_backward_pass_keeps_the_rows_and_ends_the_trust():
    model, gate = Used(plain), RowGate(0.5, heads=["head"])
    gate.find(model)
    first, second = torch.randn(2, 5, 6)

    def run(x):
        gate.open(model, whole="")
        output = model(x)
        gate.close(model, output)
        output.sum().backward()

    run(first)
    with pytest.warns(UserWarning, match="a second forward pass began after a backward pass"):
        run(second)
    gate.mask(model)
    assert set(gate.last_path.values()) == {"masked: several forward passes before one mask"}
    alone, _ = step(model, first, 0.5)
    assert all(torch.equal(gate.last_mask[name], alone.last_mask[name]) for name in "ab")
    assert not model.a.weight.grad[~gate.last_mask["a"]].any()
    gate.reset()
    run(first)
    gate.mask(model)
    assert FUSED not in gate.last_path.values()


def test_a_copy_in_the_window_is_an_ordinary_model():
    model, x = Used(plain), torch.randn(3, 6)
    gate = RowGate(0.5, heads=["head"])
    gate.find(model)
    gate.open(model, whole="")
    copied = copy.deepcopy(model)
    copied(x).sum().backward()
    assert copied.a.weight.grad.any(1).all()
    output = model(x)
    gate.close(model, output)
    copy.deepcopy(gate)
    output.sum().backward()
    gate.mask(model)
    assert gate.last_path == {"a": FUSED, "b": FUSED}


def compiling(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    return contextlib.nullcontext()


MODES = {
    "device": lambda monkeypatch: torch.device("cpu"),
    "forward mode": lambda monkeypatch: torch.autograd.forward_ad.dual_level(),
    "compiling": compiling,
}


@pytest.mark.parametrize("mode", MODES)
def test_modes_of_torch_are_left_alone(mode, monkeypatch):
    with MODES[mode](monkeypatch):
        gate, gradients = step(Used(plain), torch.randn(3, 6), 0.5)
    why = "traced or compiled" if mode == "compiling" else "a functional transform or a mode"
    assert all(path.startswith(f"masked: {why}") for path in gate.last_path.values())
    assert not gradients["a.weight"][~gate.last_mask["a"]].any()


def test_a_layer_is_left_alone_where_it_would_take_longer(monkeypatch):
    monkeypatch.setattr(kept_gradients, "_A_MOVE", 50)
    monkeypatch.setattr(kept_gradients, "_A_CALL", 2**22)
    small, large = linear_net(100, [100])[0], linear_net(400, [400])[0]
    x = torch.randn(1024, 400)
    reason = {"layer0": "masked: it would take longer"}
    compare(small, x[:16, :100], 0.7, reason)
    compare(large, x, 0.1, reason)
    compare(large, x, 0.4, {"layer0": FUSED})
    compare(large, x, 0.7, {"layer0": FUSED})


@pytest.fixture
def zeroing(monkeypatch):
    """Let no layer leave rows out, and any mask the gradient of its output."""
    monkeypatch.setattr(kept_gradients, "_A_CALL", 2**40)
    monkeypatch.setattr(kept_gradients, "_LEAST_ZEROED", 0)
    monkeypatch.setattr(kept_gradients, "_FEW_TOKENS", 0)


@pytest.mark.usefixtures("zeroing")
@pytest.mark.parametrize("half", [None, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tokens", [(5,), (2, 3)])
def test_masked_columns_of_the_gradient_of_the_output_are_zero(tokens, bias, half):
    model, names = linear_net(6, [8, 5], bias)
    with contextlib.nullcontext() if half is None else torch.autocast("cpu", dtype=half):
        expected = dict.fromkeys(names, "zeroed: it would take longer")
        gate = compare(model, torch.randn(*tokens, 6), 0.6, expected)
    assert all(int(mask.sum()) < len(mask) for mask in gate.last_mask.values())


@pytest.mark.usefixtures("zeroing")
@pytest.mark.filterwarnings("ignore:Using backward")  # torch says it once
def test_a_gradient_that_is_differentiated_again_is_not_zeroed():
    def twice(total):
        total.backward(create_graph=True)

    reason = dict.fromkeys("ab", "masked: create_graph")
    compare(Used(plain), torch.randn(3, 6), 0.5, reason, backward=twice)


def test_few_tokens_of_large_layers_are_zeroed(monkeypatch):
    monkeypatch.setattr(kept_gradients, "_A_MOVE", 50)
    monkeypatch.setattr(kept_gradients, "_A_CALL", 2**22)
    model, x = linear_net(512, [512])[0], torch.randn(160, 512)
    compare(model, x[:8], 0.1, {"layer0": "zeroed: it would take longer"})
    compare(model, x, 0.1, {"layer0": "masked: it would take longer"})


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_layer_without_units_is_left_alone(monkeypatch):
    monkeypatch.setattr(kept_gradients, "_A_CALL", 2**22)
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 0), nn.Linear(0, 2))
    gate, _ = step(model, torch.randn(3, 6), 0.5, heads=["2"])
    assert gate.last_mask["1"].shape == (0,)


@pytest.mark.parametrize("takes_norms", [True, False])
def test_no_element_exceeds_the_product_of_norms(takes_norms, monkeypatch):
    monkeypatch.setattr(kept_products, "_SMALL", 0)
    model = Used(plain)
    gate = RowGate(0.5, heads=["head"])
    gate.find(model)
    gate.open(model, whole="", takes_norms=takes_norms)
    output = model(torch.randn(3, 6))
    gate.close(model, output)
    output.square().sum().backward()
    found = gate.norms(model)
    assert found.keys() == ({id(model.a.weight), id(model.b.weight)} if takes_norms else set())
    for layer in (model.a, model.b) if takes_norms else ():
        dy, x = found[id(layer.weight)]
        assert dy.ndim == x.ndim == 0
        assert layer.weight.grad.abs().max() <= dy * x
    gate.mask(model)
    assert not gate.norms(model)


def test_nan_is_an_error_after_the_backward_pass():
    model = Used(plain)
    with torch.no_grad():
        model.a.weight[2, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="a score is NaN"):
        step(model, torch.randn(3, 6), 0.5)
