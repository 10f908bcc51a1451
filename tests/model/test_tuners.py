"""Adapters of peft that cannot be gated are named, without peft."""

import pytest
from torch import nn

from avalanche_mgem.model.layers import find_gated_layers
from avalanche_mgem.model.tuners import adapter_kind, adapter_kinds


class Tuner(nn.Module):
    """A layer as peft's: a frozen base layer, and trained vectors beside it."""

    adapter_layer_names = ("vectors",)

    def __init__(self, width):
        super().__init__()
        self.base_layer = nn.Linear(width, width).requires_grad_(False)
        self.vectors = nn.ParameterDict({"default": nn.Parameter(self.base_layer.weight[0])})


def tuner(directory):
    return type("Linear", (Tuner,), {"__module__": f"peft.tuners.{directory}.layer"})


@pytest.mark.parametrize(
    ("directory", "kind"),
    [("ia3", "IA3"), ("vera", "VeRA"), ("adalora", "AdaLoRA"), ("newest_kind", "newest kind")],
)
def test_the_kind_is_told_by_the_class(directory, kind):
    layer = tuner(directory)(3)
    assert adapter_kind(layer) == kind
    assert adapter_kind(layer.base_layer) is None
    model = nn.Sequential(layer, nn.ReLU(), tuner(directory)(3), nn.Linear(3, 2))
    assert adapter_kinds(model) == {kind: ["0", "2"]}
    with pytest.raises(ValueError, match=rf"its adapters are {kind} \(0, 2\).*peft's.* LoRA"):
        find_gated_layers(model)


def test_a_class_of_another_library_goes_by_its_own_name():
    assert adapter_kinds(nn.Sequential(Tuner(3))) == {"Tuner": ["0"]}


def test_what_adds_to_the_input_is_told_by_the_configuration():
    class Configuration:
        peft_type = "PROMPT_TUNING"

    model = nn.Sequential(nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 2))
    model.peft_config = {"default": Configuration()}
    assert adapter_kinds(model) == {"prompt tuning": [""]}
    with pytest.raises(ValueError, match="its adapters are prompt tuning, whose"):
        find_gated_layers(model)


def test_frozen_is_said_of_what_is_frozen_alone():
    model = nn.Sequential(*[nn.Linear(3, 3) for _ in range(5)], nn.Linear(3, 2))
    model[1].requires_grad_(False)
    with pytest.raises(ValueError, match=r"the weights of 1 are frozen$"):
        find_gated_layers(model, ["1"])
    model[:5].requires_grad_(False)
    with pytest.raises(ValueError, match=r"the weights of 0, 1, 2, \.\.\. are frozen$"):
        find_gated_layers(model)
    assert find_gated_layers(model, heads=())
