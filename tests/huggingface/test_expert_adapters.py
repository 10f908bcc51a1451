"""peft's LoRA on the parameters of experts (`target_parameters`), and of single matrices."""

import copy
import warnings

import peft
import pytest
import torch
from mixtures import NEEDS_EXPERTS, T, adamw, gated_pass, make_batch, make_mixture, snapshot
from reference.experts import slow_scores

from avalanche_mgem.model.gate import RowGate
from avalanche_mgem.model.gate_layers import GateLayers
from avalanche_mgem.model.layers import find_gated_layers, resolve_gated_layers

pytestmark = [
    NEEDS_EXPERTS,
    pytest.mark.skipif(
        "target_parameters" not in peft.LoraConfig.__dataclass_fields__,
        reason="this peft knows LoRA of modules only",
    ),
]
ADAPTED = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def with_adapters(model, targets=ADAPTED, names=("default",)):
    for index, name in enumerate(names):
        config = peft.LoraConfig(
            r=2 + index, lora_alpha=4, target_modules=[], target_parameters=list(targets)
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")
            peft.inject_adapter_in_model(config, model, adapter_name=name)
    for module in model.modules():
        if hasattr(module, "parameter_name"):
            module.set_adapter(list(names))
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.3)
        parameter.requires_grad_("lora_" in parameter_name)
    return model


def merged(model):
    twin = copy.deepcopy(model)
    for module in twin.modules():
        if hasattr(module, "parameter_name"):
            module.merge()
    return twin


def wrapper_of(model, parameter):
    found = [m for m in model.modules() if getattr(m, "parameter_name", None) == parameter]
    return found[0]


@pytest.mark.cover
@pytest.mark.parametrize("way", ["eager", "batched_mm", "grouped_mm"])
@pytest.mark.parametrize("name", ["mixtral", "gpt-oss", "qwen3"])
@pytest.mark.parametrize("names", [("default",), ("one", "two")], ids=["one", "two"])
def test_adapters_of_experts(name, way, names):
    """B by the combined output of each expert, A by its own of that expert's tokens."""
    model, batch = with_adapters(make_mixture(name, way), names=names), make_batch()
    plain, gate = merged(model), RowGate(T)
    gate.find(model)
    gated_pass(model, batch, gate)
    gate.mask(model)
    expected = {
        layer.replace(".base_layer", ""): pair for layer, pair in slow_scores(plain, batch).items()
    }
    for adapter in names:

        def through(key, expert, x, y, adapter=adapter):
            a = wrapper_of(model, key).lora_A[adapter].weight.detach()
            rank = len(a) // 4
            return a[expert * rank : (expert + 1) * rank] @ x

        for layer, pair in slow_scores(plain, batch, of=through).items():
            expected[f"{layer.replace('.base_layer', '')}.lora_A.{adapter}"] = pair
    assert gate.last_scores.keys() == expected.keys()
    for layer, (mean, count) in expected.items():
        own, seen = gate.last_scores[layer].double(), count > 0
        assert own.shape == mean.shape
        torch.testing.assert_close(own[seen], mean[seen], rtol=1e-3, atol=1e-6)
        assert not gate.last_mask[layer][~seen].any()


@pytest.mark.parametrize("name", ["mixtral", "gpt-oss"])
def test_rows_of_adapters_are_those_of_one_expert(name):
    """What unit i of expert e is fed by changes that expert's output i and no other."""
    model = with_adapters(make_mixture(name))
    covered = {n: torch.zeros_like(p) for n, p in model.named_parameters() if p.requires_grad}
    layers = find_gated_layers(model)
    assert sum("lora_A" in layer.name for layer in layers) == 2
    for layer in layers:
        for rows in layer.rows:
            assert model.get_parameter(rows.name) is rows.parameter
            rows.of(covered[rows.name]).add_(1)
            if "lora_B" not in rows.name:
                continue
            wrapper = model.get_submodule(rows.name.partition(".lora_B")[0])
            before = wrapper.get_delta_weight("default").detach().clone()
            place = (2, *(size - 1 for size in rows.unit_shape[1:]))
            with torch.no_grad():
                rows.of(rows.parameter)[place] += 1.0
            changed = wrapper.get_delta_weight("default").detach() != before
            base = resolve_gated_layers(model.requires_grad_(True), [layer.name])[0].rows[0]
            units = base.of(changed).flatten(len(base.unit_shape)).any(-1)
            assert [tuple(u) for u in units.nonzero().tolist()] == [place]
            with_adapters_only(model)
    assert all((count == 1).all() for count in covered.values())


def with_adapters_only(model):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)


def replace_b(wrapper):
    wrapper.lora_B["one"].weight = torch.nn.Parameter(wrapper.lora_B["one"].weight.detach().clone())


CHANGES = {
    "replaced": replace_b,
    "frozen": lambda wrapper: wrapper.lora_B["one"].weight.requires_grad_(False),
    "inactive": lambda wrapper: wrapper.set_adapter(["one"]),
}


@pytest.mark.parametrize("which", [0, 1], ids=["outer", "inner"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_a_wrapper_between_two_steps_is_seen(change, which):
    model = with_adapters(make_mixture("mixtral", "eager"), names=("one", "two"))
    wrappers = [module for module in model.modules() if hasattr(module, "parameter_name")]
    layers = GateLayers(None, ["*head"], "layer")
    layers.find(model)
    known = layers.of(model)
    layers.end_step()
    assert layers.of(model) is known
    layers.end_step()
    CHANGES[change](wrappers[which])
    assert parts(known) != parts(layers.of(model))
    assert parts(layers.of(model)) == parts(resolve_gated_layers(model, layers.names))


def parts(layers):
    return [(each.name, [(r.name, id(r.parameter)) for r in each.rows]) for each in layers]


@pytest.mark.parametrize("freeze", ["gradient", "update"])
@pytest.mark.parametrize("fraction", [0.0, T])
def test_steps_of_adapters(freeze, fraction):
    model = with_adapters(make_mixture("mixtral", "grouped_mm"))
    plain = copy.deepcopy(model)
    optimizer, other, gate = adamw(model), adamw(plain), RowGate(fraction, freeze=freeze)
    gate.find(model)
    for step in range(2):
        optimizer.zero_grad()
        other.zero_grad()
        gated_pass(model, make_batch(step), gate)
        plain(**make_batch(step)).loss.backward()
        gate.mask(model)
        gate.hold(model, optimizer)
        before = snapshot(model)
        optimizer.step()
        other.step()
        gate.release()
        for layer in resolve_gated_layers(model, gate.last_mask):
            kept = gate.last_mask[layer.name]
            for rows in layer.rows:
                still = (~kept).reshape(rows.unit_shape)
                assert not rows.of(rows.parameter.grad)[still].any()
                if freeze == "update":
                    old, new = rows.of(before[rows.name]), rows.of(rows.parameter.detach())
                    assert torch.equal(old[still], new[still])
        gate.reset()
    same = [torch.equal(p, q) for p, q in zip(model.parameters(), plain.parameters(), strict=True)]
    assert all(same) == (fraction == 0.0)


@pytest.mark.parametrize("target", ["q_proj.weight", "gate.weight"])
def test_adapters_of_a_matrix_go_by_its_product(target):
    model, batch = with_adapters(make_mixture("mixtral"), [target]), make_batch()
    gate = RowGate(0.5)
    gate.find(model)
    (wrapper,) = (m for m in model.modules() if hasattr(m, "parameter_name"))
    seen = []
    hook = wrapper.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    gated_pass(model, batch, gate)
    hook.remove()
    gate.look(model)
    x, (combined, a) = seen[0].flatten(0, -2), gate.last_scores.values()
    weight = wrapper.get_base_layer().weight.detach() + wrapper.get_delta_weight("default").detach()
    torch.testing.assert_close(combined, (x @ weight.T).abs().mean(0))
    own = wrapper.lora_A["default"].weight.detach()
    torch.testing.assert_close(a, (x @ own.T).abs().mean(0))


def test_merged_adapters_of_experts_are_refused():
    model = with_adapters(make_mixture("mixtral"))
    wrapper_of(model, "down_proj").merge()
    with pytest.raises(ValueError, match="experts' is merged"):
        find_gated_layers(model)
