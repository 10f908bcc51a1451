"""Mixtures of experts: each expert's rows by what it puts out, against a slow reference."""

import copy

import pytest
import torch
from mixtures import (
    MIXTURES,
    NEEDS_EXPERTS,
    T,
    adamw,
    gated_pass,
    make_batch,
    make_mixture,
    snapshot,
    ways,
)
from reference.experts import slow_scores

from avalanche_mgem.model.gate import RowGate
from avalanche_mgem.model.layers import find_gated_layers, resolve_gated_layers
from avalanche_mgem.restriction.rows import UNSEEN, n_masked

pytestmark = NEEDS_EXPERTS
WAYS = pytest.mark.parametrize(("name", "way"), list(ways()))


@pytest.mark.cover
@WAYS
@pytest.mark.parametrize("ignore_padding", [False, True])
def test_scores_are_those_of_each_token(name, way, ignore_padding):
    model, batch = make_mixture(name, way), make_batch()
    state = torch.get_rng_state()  # Phimoe draws its routing
    tokens = batch["attention_mask"].flatten() == 1 if ignore_padding else None
    expected = slow_scores(model, batch, tokens)
    gate = RowGate(T, ignore_padding=ignore_padding)
    gate.find(model)
    torch.set_rng_state(state)
    gated_pass(model, batch, gate)
    gate.mask(model)
    experts = {n: s for n, s in gate.last_scores.items() if s.ndim > 1}
    assert experts.keys() == expected.keys() != set()
    for layer, (mean, count) in expected.items():
        own, seen = experts[layer].double(), count > 0
        torch.testing.assert_close(own[seen], mean[seen], rtol=1e-4, atol=1e-6)
        assert (own[~seen] == UNSEEN).all()
        kept = gate.last_mask[layer]
        n = kept.shape[-1]
        assert ((~kept)[seen].sum(-1) == n_masked(T, n)).all()
        assert not kept[~seen].any()
        for rows, masked in zip(own[seen].view(-1, n), ~kept[seen].view(-1, n), strict=True):
            assert set(rows.argsort(stable=True)[: n_masked(T, n)].tolist()) == set(
                masked.nonzero().flatten().tolist()
            )


def rows_of(model, layer, tensor_of):
    """The layer's rows in each of its parameters, [*blocks, n, ...]."""
    for rows in layer.rows:
        yield (
            rows.of(tensor_of(rows)).flatten(0, len(rows.unit_shape) - 1).unflatten(0, layer.shape)
        )


@pytest.mark.cover
@WAYS
def test_masked_rows_do_not_move_by_a_bit(name, way):
    """Under AdamW with weight decay; those of experts without a token neither."""
    model, optimizer_of = make_mixture(name, way), adamw
    optimizer, gate = optimizer_of(model), RowGate(T, freeze="update")
    gate.find(model)
    for step in range(2):
        optimizer.zero_grad()
        gated_pass(model, make_batch(step, (2, 4)), gate)
        gate.mask(model)
        gate.hold(model, optimizer)
        before = snapshot(model)
        optimizer.step()
        gate.release()
        layers = resolve_gated_layers(model, gate.last_mask)
        for layer in layers:
            kept = gate.last_mask[layer.name]
            if not layer.blocks:
                continue
            old = list(rows_of(model, layer, lambda rows, b=before: b[rows.name]))
            new = list(rows_of(model, layer, lambda rows: rows.parameter.detach()))
            slopes = list(rows_of(model, layer, lambda rows: rows.parameter.grad))
            for one, other, slope in zip(old, new, slopes, strict=True):
                assert torch.equal(one[~kept], other[~kept])
                assert not slope[~kept].any()
                assert (one[kept] != other[kept]).any()
        gate.reset()


@pytest.mark.cover
@WAYS
@pytest.mark.parametrize("freeze", ["gradient", "update"])
def test_with_nothing_masked_steps_are_plain_to_the_bit(name, way, freeze):
    model = make_mixture(name, way)
    plain = copy.deepcopy(model)
    optimizer, other, gate = adamw(model), adamw(plain), RowGate(0.0, freeze=freeze)
    gate.find(model)
    for step in range(2):
        optimizer.zero_grad()
        other.zero_grad()
        torch.manual_seed(step)
        gated_pass(model, make_batch(step), gate)
        torch.manual_seed(step)
        plain(**make_batch(step)).loss.backward()
        gate.mask(model)
        gate.hold(model, optimizer)
        optimizer.step()
        other.step()
        gate.release()
        gate.reset()
    assert all(mask.all() for mask in gate.last_mask.values())
    for one, two in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("name", MIXTURES)
def test_nine_tenths_are_gated(name):
    """Of what trains but embeddings and the head, which the tiny vocabulary makes large here."""
    model = make_mixture(name)
    gated = {id(rows.parameter) for layer in find_gated_layers(model) for rows in layer.rows}
    body = {
        n: p
        for n, p in model.named_parameters()
        if "embed" not in n and not n.startswith("lm_head")
    }
    share = sum(p.numel() for p in body.values() if id(p) in gated) / sum(
        p.numel() for p in body.values()
    )
    assert share > 0.9


@pytest.mark.parametrize("score", ["gradient", "weight", "random"])
@pytest.mark.parametrize("name", ["mixtral", "gpt-oss", "dbrx"])
def test_other_scores_leave_experts_without_a_token_alone(name, score):
    model, gate = make_mixture(name), RowGate(T, score=score, freeze="update", seed=1)
    optimizer = adamw(model)
    gate.find(model)
    batch = make_batch(0, (2, 3))
    batch["input_ids"][:] = 7  # all tokens go the same way
    batch["attention_mask"][:] = 1
    gated_pass(model, batch, gate)
    gate.mask(model)
    gate.hold(model, optimizer)
    before = snapshot(model)
    optimizer.step()
    gate.release()
    without = 0
    for layer in resolve_gated_layers(model, gate.last_mask):
        if not layer.blocks:
            continue
        kept = gate.last_mask[layer.name]
        for rows in layer.rows:
            slope = rows.of(rows.parameter.grad).flatten(1)
            alone = ~slope.any(1)
            moved = rows.of(rows.parameter.detach()) != rows.of(before[rows.name])
            assert not moved[alone].any()
            assert not kept[alone].any()
            without += int(alone.sum())
        n = kept.shape[-1]
        assert set((~kept).sum(-1).flatten().tolist()) <= {n, n_masked(T, n)}
    assert without > 0


@pytest.mark.parametrize("way", ["eager", "batched_mm", "grouped_mm"])
def test_several_passes_add_up(way):
    model, gate = make_mixture("mixtral", way), RowGate(T)
    gate.find(model)
    first, second = make_batch(0), make_batch(1)
    for batch in (first, second):
        gated_pass(model, batch, gate)
    gate.look(model)
    both = {name: torch.cat([first[name], second[name]]) for name in first}
    for layer, (mean, count) in slow_scores(model, both).items():
        own, seen = gate.last_scores[layer].double(), count > 0
        torch.testing.assert_close(own[seen], mean[seen], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("name", ["qwen3", "gpt-oss"])
def test_checkpointed_experts_count_once(name, use_reentrant):
    scores = []
    for checkpointed in (False, True):
        model, gate = make_mixture(name, "grouped_mm", use_cache=False), RowGate(T)
        if checkpointed:
            enable = getattr(model, "activation_checkpointing_enable", None)
            (enable or model.gradient_checkpointing_enable)({"use_reentrant": use_reentrant})
            model.enable_input_require_grads()
        gate.find(model)
        gated_pass(model, make_batch(), gate)
        gate.look(model)
        scores.append(gate.last_scores)
    for layer, score in scores[0].items():
        assert torch.equal(score, scores[1][layer])


def test_a_copy_of_the_model_is_not_watched():
    model, gate = make_mixture("mixtral", "grouped_mm"), RowGate(T)
    gate.find(model)
    gate.open(model)
    twin, again = copy.deepcopy(model), copy.deepcopy(gate)
    twin(**make_batch())
    gate.close()
    with pytest.raises(RuntimeError, match="no output of a gated layer"):
        gate.look(model)
    assert not again._recorder._watches
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_an_interrupted_pass_leaves_no_watch():
    model, gate = make_mixture("mixtral"), RowGate(T)

    def interrupt(*arguments):
        raise KeyboardInterrupt

    gate.find(model)
    gate.open(model)
    experts = model.model.layers[0].mlp.experts
    experts.act_fn.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(**make_batch())
    assert torch._C._len_torch_function_stack() == 1
    gate.find(model)
    assert torch._C._len_torch_function_stack() == 0


def test_an_error_in_an_expert_is_its_own():
    model, gate = make_mixture("mixtral"), RowGate(T)

    def fail(*arguments):
        raise ValueError("oops")

    gate.find(model)
    gate.open(model)
    model.model.layers[0].mlp.experts.act_fn.register_forward_hook(fail)
    with pytest.raises(ValueError, match="oops"):
        model(**make_batch())
    assert torch._C._len_torch_function_stack() == 0
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_an_implementation_that_hides_the_products_is_refused():
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    def hidden(self, hidden_states, top_k_index, top_k_weights):
        return hidden_states * 1

    def own(self, hidden_states, top_k_index, top_k_weights):
        return type(self).forward.__wrapped__(self, hidden_states, top_k_index, top_k_weights)

    model, gate = make_mixture("mixtral"), RowGate(T)
    gate.find(model)
    try:
        ALL_EXPERTS_FUNCTIONS.register("hidden", hidden)
        ALL_EXPERTS_FUNCTIONS.register("own", own)
        model.set_experts_implementation("own")
        gated_pass(model, make_batch(), gate)
        gate.begin()
        model.set_experts_implementation("hidden")
        with pytest.raises(ValueError, match="not seen, experts_implementation='hidden'"):
            gated_pass(model, make_batch(), gate)
    finally:
        for name in ("hidden", "own"):
            ALL_EXPERTS_FUNCTIONS._global_mapping.pop(name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_half_precision_and_autocast(dtype):
    whole = make_mixture("gpt-oss", "eager")
    reference = slow_scores(whole, make_batch())
    model, gate = copy.deepcopy(whole).to(dtype), RowGate(T)
    gate.find(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        gated_pass(model, make_batch(), gate, backward=False)
    gate.look(model)
    off = []
    for layer, (mean, count) in reference.items():
        apart = gate.last_scores[layer][count > 0].double() - mean[count > 0]
        off.append(float(apart.norm() / mean.norm()))
    assert all(s.dtype == torch.float32 for s in gate.last_scores.values())
    assert max(off) < 0.1


@pytest.mark.filterwarnings("ignore:target_modules. 1 of the layers that are meant")
def test_targets_name_experts_as_peft_does():
    model = make_mixture("mixtral")

    def names(targets):
        return [
            layer.name.removeprefix("model.layers.0.mlp.")
            for layer in find_gated_layers(model, targets)
        ]

    both = ["experts.gate_up_proj", "experts.down_proj"]
    assert names(["experts"]) == both
    assert names(["mlp.experts.gate_up_proj"]) == both[:1]
    assert names(["down_proj"]) == ["experts.down_proj"]
    assert names(["gate"]) == ["gate"]
    assert set(names("all-linear")) > {*both, "gate"}
    assert names(r".*experts\.down.*") == ["experts.down_proj"]
    model.model.layers[0].mlp.experts.gate_up_proj.requires_grad_(False)
    assert names(["experts"]) == ["experts.down_proj"]
