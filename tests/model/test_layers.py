"""Which layers are gated, and that row i of their parameters feeds output unit i and no other."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lookalikes import Block, Conv1D, LanguageModel, LoraLinear, with_lora
from torch import nn

from avalanche_mgem.model.layers import find_gated_layers, resolve_gated_layers


def names(model, *arguments, **settings):
    return [layer.name for layer in find_gated_layers(model, *arguments, **settings)]


def conv_net():
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, groups=1), nn.ReLU(), nn.Flatten(), nn.Linear(20, 6), nn.Linear(6, 2)
    )


def peft_model(ranks=None):
    """A model in peft's two wrappers; the LoRA layers are on q_proj and v_proj."""
    inner = with_lora(LanguageModel(), ["q_proj", "v_proj"], ranks or {"default": 2})
    return nn.ModuleDict({"base_model": nn.ModuleDict({"model": inner})})


CASES = {
    "linear": (nn.Linear(4, 6), (5, 4)),
    "linear without bias": (nn.Linear(4, 6, bias=False), (2, 3, 4)),
    "conv2d": (nn.Conv2d(4, 6, 3), (2, 4, 5, 5)),
    "grouped conv2d": (
        nn.Conv2d(4, 6, 3, groups=2, padding_mode="reflect", padding=1),
        (2, 4, 5, 5),
    ),
    "unbatched conv2d": (nn.Conv2d(4, 6, 3), (4, 5, 5)),
    "conv1d": (Conv1D(6, 4), (2, 3, 4)),
    "lora": (LoraLinear(nn.Linear(4, 6), {"one": 2, "two": 3}), (2, 3, 4)),
    "lora on conv1d": (LoraLinear(Conv1D(6, 4), {"one": 2}), (2, 3, 4)),
    "lora on conv2d": (LoraLinear(nn.Conv2d(4, 6, 3), {"one": 2}), (2, 4, 5, 5)),
}


@pytest.mark.parametrize("case", CASES)
def test_row_i_feeds_unit_i_and_no_other(case):
    module, shape = CASES[case]
    outputs = {}
    layers = find_gated_layers(nn.Sequential(module), heads=())
    for layer in layers:
        layer.module.register_forward_hook(
            lambda _, __, output, name=layer.name: outputs.update({name: output})
        )
    module(torch.randn(shape))
    for layer in layers:
        output = outputs[layer.name].movedim(layer.channel_dim, -1)
        assert output.shape[-1] == layer.n_rows
        for unit in range(layer.n_rows):
            parameters = [r.parameter for r in layer.rows] + [p for _, p in layer.biases]
            slopes = torch.autograd.grad(output[..., unit].sum(), parameters, retain_graph=True)
            own = [*layer.rows, *[None] * len(layer.biases)]
            for slope, rows in zip(slopes, own, strict=True):
                moved = slope[:, None] if rows is None else rows.of(slope).flatten(1)
                fed = [i for i in range(layer.n_rows) if moved[i].any()]
                assert fed in ([unit], [])  # [] where a dead B passes nothing on
    trained = {id(p) for p in module.parameters() if p.requires_grad}
    assert trained == {
        id(p)
        for layer in layers
        for p in [r.parameter for r in layer.rows] + [b for _, b in layer.biases]
    }
    module._forward_hooks.clear()


def test_names_and_kinds():
    layers = find_gated_layers(conv_net())
    assert [(layer.name, layer.kind, layer.n_rows) for layer in layers] == [
        ("0", "conv2d", 5),
        ("3", "linear", 6),
    ]
    assert [(r.name, r.dims) for r in layers[0].rows] == [("0.weight", (0,))]
    assert [name for name, _ in layers[0].biases] == ["0.bias"]
    (layer,) = find_gated_layers(Conv1D(3, 2), heads=())
    assert (layer.name, layer.kind, layer.rows[0].name, layer.rows[0].dims) == (
        "",
        "conv1d",
        "weight",
        (1,),
    )


def test_a_lora_layer_has_two_outputs():
    layers = find_gated_layers(peft_model({"old": 2, "new": 3}), ["q_proj"])
    prefix = "base_model.model.layers.0.q_proj"
    assert [layer.name for layer in layers[:3]] == [
        prefix,
        f"{prefix}.lora_A.old",
        f"{prefix}.lora_A.new",
    ]
    combined, a_old, a_new = layers[:3]
    assert [r.name for r in combined.rows] == [
        f"{prefix}.lora_B.old.weight",
        f"{prefix}.lora_B.new.weight",
    ]
    assert (combined.kind, combined.n_rows, a_old.n_rows, a_new.n_rows) == ("lora", 4, 2, 3)


def test_only_active_and_trained_adapters_have_rows():
    layer = LoraLinear(nn.Linear(4, 6), {"one": 2, "two": 3})
    layer.active_adapters = ["two"]
    model = nn.Sequential(layer)
    assert names(model, heads=()) == ["0", "0.lora_A.two"]
    layer.lora_A["two"].requires_grad_(False)
    assert names(model, heads=()) == ["0"]
    layer.active_adapters = ["one", "two", "of another layer"]
    assert names(model, heads=()) == ["0", "0.lora_A.one"]
    layer.base_layer.requires_grad_(True)
    (combined, _) = find_gated_layers(model, heads=())
    assert combined.rows[0].name == "0.base_layer.weight"
    layer.disable_adapters = True
    assert [r.name for r in find_gated_layers(model, heads=())[0].rows] == ["0.base_layer.weight"]


def test_an_active_adapter_may_be_a_string():
    layer = LoraLinear(nn.Linear(4, 6), {"one": 2, "two": 3})
    del layer.active_adapters
    layer.active_adapter = "two"
    assert names(nn.Sequential(layer), heads=()) == ["0", "0.lora_A.two"]


def test_a_merged_lora_layer_is_refused():
    layer = LoraLinear(nn.Linear(4, 6), {"one": 2})
    model = nn.Sequential(nn.Linear(4, 4), layer)
    layer.merged_adapters.append("one")
    with pytest.raises(ValueError, match=r"LoRA layer '1' is merged.*unmerge_adapter\(\) first"):
        find_gated_layers(model, heads=())
    layer.lora_A.requires_grad_(False)
    layer.lora_B.requires_grad_(False)
    assert names(model, heads=()) == ["0"]


@pytest.mark.parametrize("attribute", ["use_dora", "lora_variant"])
def test_variants_of_lora_are_refused(attribute):
    layer = LoraLinear(nn.Linear(4, 6), {"one": 2})
    setattr(layer, attribute, {"one": True})
    with pytest.raises(ValueError, match="'one' of '0' is DoRA or another variant"):
        find_gated_layers(nn.Sequential(layer), heads=())


def test_lora_on_attention_is_left_alone_and_on_a_parameter_it_goes_by_its_module():
    layer = LoraLinear(nn.Linear(4, 6), {"one": 2})
    layer.base_layer = nn.MultiheadAttention(4, 2)
    lone_parameter = LoraLinear(nn.Linear(4, 6), {"one": 2})
    lone_parameter.parameter_name = "weight"  # as peft's ParamWrapper
    model = nn.Sequential(layer, lone_parameter, nn.Linear(3, 3))
    assert names(model, heads=()) == ["1", "1.lora_A.one", "2"]


def test_what_is_no_parameter_has_no_rows():
    model = nn.Sequential(nn.Linear(4, 4), nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)))
    assert names(model, heads=()) == ["0"]


# Heads.


def test_the_last_linear_layer_is_the_head_where_nothing_says_so():
    assert names(conv_net()) == ["0", "3"]
    assert names(conv_net(), heads=()) == ["0", "3", "4"]
    assert names(conv_net(), heads="3") == ["0", "4"]
    assert names(conv_net(), heads=["[34]"]) == ["0"]


@pytest.mark.parametrize(
    "head", ["classifier", "classification_head", "score", "lm_head", "qa_outputs"]
)
@pytest.mark.parametrize("wrapper", [None, "module", "_orig_mod", "model"])
def test_heads_by_name_at_the_top(head, wrapper):
    own = nn.ModuleDict({"dense": nn.Linear(4, 4), "out": nn.Linear(4, 2)})
    model = nn.ModuleDict({head: own, "body": nn.ModuleDict({"score": nn.Linear(4, 4)})})
    model = model if wrapper is None else nn.ModuleDict({wrapper: model})
    assert names(model) == ["body.score" if wrapper is None else f"{wrapper}.body.score"]


def test_avalanches_heads():
    pytest.importorskip("avalanche")
    from avalanche.models import IncrementalClassifier, MultiHeadClassifier, SimpleMLP, as_multitask

    class OwnClassifier(IncrementalClassifier):
        pass

    body = {"body": nn.Linear(4, 4)}
    for head in (IncrementalClassifier(4), MultiHeadClassifier(4), OwnClassifier(4)):
        model = nn.ModuleDict({"out": head, **body})
        assert names(model) == ["body"]
    assert names(as_multitask(SimpleMLP(), "classifier")) == ["model.features.0"]


def test_output_embeddings_are_heads_also_inside_a_wrapper():
    gated = [f"layers.{i}.{n}" for i in range(2) for n in ("q_proj", "v_proj", "up", "down")]
    for tied in (True, False):
        assert names(LanguageModel(tied=tied)) == gated
    wrapped = nn.ModuleDict({"net": LanguageModel(), "other": nn.Linear(4, 4)})
    assert names(wrapped) == [f"net.{name}" for name in gated] + ["other"]


def test_a_model_may_have_no_output_embeddings():
    class Bare(LanguageModel):
        def get_output_embeddings(self):
            return None

    assert "out" not in names(Bare(tied=False))
    assert "layers.1.down" in names(Bare(tied=False))
    model = nn.ModuleDict({"net": Bare(tied=False), "last": nn.Linear(4, 4)})
    model["net"].score = nn.Linear(4, 2)
    assert "net.score" not in names(model)
    assert "last" in names(model)


def test_a_name_that_begins_like_a_heads_is_no_head():
    model = nn.ModuleDict({"score_of_words": nn.Linear(4, 4), "score": nn.Linear(4, 2)})
    assert names(model) == ["score_of_words"]


def test_shared_weights_are_left_out_unless_they_are_named():
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    model[2].weight = model[1].weight
    assert names(model) == ["0"]
    assert names(model, "all-linear") == names(model, ["0", "1", "2"]) == ["0", "1", "2"]
    with pytest.raises(ValueError, match=r"every weight is shared.*named in target_modules"):
        find_gated_layers(nn.Sequential(model[1], model[2], nn.Linear(4, 2)))


def test_lora_layers_on_a_shared_weight_have_rows_of_their_own():
    shared = nn.Linear(4, 4)
    other = nn.Linear(4, 4)
    other.weight = shared.weight
    lora = (LoraLinear(layer, {"one": 2}) for layer in (shared, other))
    model = nn.Sequential(*lora, nn.Linear(4, 2))
    assert names(model) == ["0", "0.lora_A.one", "1", "1.lora_A.one"]


# Targets.


def test_targets_are_named_as_in_peft():
    model = LanguageModel()
    v = ["layers.0.v_proj", "layers.1.v_proj"]
    assert names(model, ["v_proj"]) == names(model, {"v_proj"}) == v
    assert names(model, ["0.v_proj"]) == names(model, ["layers.0.v_proj"]) == v[:1]
    assert names(model, r".*\.v_proj") == names(model, r"layers\.\d\.v_proj") == v
    assert names(model, "all-linear") == names(model)
    assert names(conv_net(), "all-linear") == ["3"]


def test_in_a_wrapper_an_expression_may_leave_the_wrapper_out():
    model = peft_model()
    assert len(names(model, r"layers\.0\.q_proj")) == 2  # the combined output, and A
    assert names(model, r"layers\.0\.q_proj") == names(model, r".*\.layers\.0\.q_proj")
    assert len(names(model)) == len(names(model, ["q_proj", "v_proj"])) == 8


@given(st.data())
def test_a_list_takes_what_any_of_its_names_takes(data):
    model = LanguageModel(n_blocks=3)
    every = names(model)
    parts = [name.split(".")[-1] for name in every] + every
    targets = data.draw(st.lists(st.sampled_from(parts), min_size=1, max_size=4))
    expected = [n for n in every if any(n == t or n.endswith("." + t) for t in targets)]
    assert names(model, targets) == expected


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (["q_prj"], "'q_prj' matches no layer; did you mean 'q_proj'"),
        (["q_proj", "0.vproj"], "'0.vproj' matches no layer; did you mean '0.v_proj'"),
        (["norm"], "'norm' names no layer with rows to gate"),
        (["out"], "'out' names .* an output head"),
        ("q_proj", "'q_proj' .* is a regular expression .* did you mean 'q_proj'"),
        ("(", "target_modules must be .* got '\\('"),
        ([], "target_modules must be .* got \\[\\]"),
        (3, "target_modules must be .* got 3"),
        ([3], "target_modules must be .* got \\[3\\]"),
    ],
)
def test_targets_that_match_nothing(targets, said):
    with pytest.raises(ValueError, match=said):
        find_gated_layers(LanguageModel(), targets)


def test_heads_that_match_nothing():
    with pytest.raises(ValueError, match="heads: 'outs' matches no module; did you mean 'out'"):
        find_gated_layers(LanguageModel(), heads=["outs"])


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3)), "no linear, .* or LoRA"),
        (nn.Sequential(nn.Linear(3, 2)), r"but output heads: 0; heads=\(\)"),
        (nn.Sequential(nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 2)), "are frozen"),
    ],
)
def test_models_without_a_gated_layer(model, said):
    with pytest.raises(ValueError, match=f"no layer with rows to gate.*{said}"):
        find_gated_layers(model)


def test_all_linear_of_convolutions_alone():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2, 2))
    with pytest.raises(ValueError, match="'all-linear' matches no layer; known: 0"):
        find_gated_layers(model, "all-linear")


# Names that are kept from step to step.


@pytest.mark.parametrize("make", [conv_net, LanguageModel, peft_model])
def test_names_resolve_to_the_same_layers(make):
    model = make()
    assert resolve_gated_layers(model, names(model)) == find_gated_layers(model)


def test_what_was_replaced_is_found_anew():
    model = conv_net()
    kept = names(model)
    model[3] = nn.Linear(20, 9)
    assert [layer.module for layer in resolve_gated_layers(model, kept)] == [model[0], model[3]]
    model[0].requires_grad_(False)
    assert [layer.name for layer in resolve_gated_layers(model, kept)] == ["3"]
    with pytest.raises(ValueError, match="no module '9' any more"):
        resolve_gated_layers(model, [*kept, "9"])


def test_blocks_of_a_list_are_found():
    model = nn.ModuleList([Block(3), nn.Linear(3, 2)])
    assert names(model) == ["0.q_proj", "0.v_proj", "0.up", "0.down"]
