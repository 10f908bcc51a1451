"""Adapters on layers that a model reads and does not call are named in the first step."""

import pytest
import tiny
import torch
import transformers
from tiny import domain_stream, make_strategy
from torch import nn

from avalanche_mgem import HybridMagnitudePlugin, MIGUPlugin
from avalanche_mgem.huggingface import IncLoRAPlugin, LoRAPlugin, OLoRAPlugin


class Cosine(nn.Module):
    """The weight of `compared` is normalised, and its forward is not called."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.second = nn.Linear(8, 8)
        self.compared = nn.Linear(8, 8, bias=False)
        self.classifier = nn.Linear(8, tiny.N_CLASSES)

    def forward(self, x):
        hidden = nn.functional.normalize(torch.relu(self.second(torch.relu(self.first(x)))))
        return self.classifier(hidden @ nn.functional.normalize(self.compared.weight).T)


class Skipping(Cosine):
    """As layer drop: one of two layers is skipped at first."""

    def forward(self, x):
        x = torch.relu(self.first(x))
        self.steps = getattr(self, "steps", 0) + self.training
        return self.classifier(x if self.steps == 1 else self.second(x))


def train(plugin, *others, model=None, n=1):
    torch.manual_seed(0)
    strategy = make_strategy(Cosine() if model is None else model, [plugin, *others])
    for experience in domain_stream().train_stream[:n]:
        strategy.train(experience)
    return strategy


PLUGINS = [LoRAPlugin, IncLoRAPlugin, OLoRAPlugin, lambda **k: OLoRAPlugin(norm_penalty=0.1, **k)]
NAMED = [["first", "compared"], ["compared"], r"comp.*"]


@pytest.mark.parametrize("plugin", PLUGINS)
@pytest.mark.parametrize("target_modules", NAMED)
def test_a_named_target_is_refused_before_the_first_step(target_modules, plugin):
    model = Cosine()
    before = model.classifier.weight.clone()
    strategy = make_strategy(model, [plugin(target_modules=target_modules, alpha=1)])
    for _ in range(2):
        with pytest.raises(ValueError, match=r"target_modules: 'comp.* names compared, whose"):
            strategy.train(domain_stream().train_stream[0])
    assert torch.equal(model.classifier.weight, before)


@pytest.mark.parametrize("plugin", PLUGINS)
@pytest.mark.parametrize("target_modules", [None, "all-linear", ".*(first|compared)"])
def test_others_are_told_once_for_each_adapter(target_modules, plugin):
    made = plugin(target_modules=target_modules, alpha=1, rank=2)
    said = r"1 of [23] adapters had no gradient .*compared: .* does not call the forward"
    with pytest.warns(UserWarning, match=said) as told:
        train(made, n=3)
    n_told = sum("adapters had no gradient" in str(warning.message) for warning in told)
    assert n_told == (1 if plugin is LoRAPlugin else 3)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_what_is_called_is_not_told(plugin):
    train(plugin(target_modules=["first", "second"], alpha=1), n=2)


@pytest.mark.parametrize("first", [True, False])
def test_what_migu_hides_or_the_hybrid_freezes_is_not_told(first):
    """Biases are hidden by ungated="freeze", and the hybrid freezes earlier modules."""
    lora = IncLoRAPlugin(target_modules=["first", "second"], alpha=1)
    for other in (MIGUPlugin(0.5, skip_tasks=0, ungated="freeze"), HybridMagnitudePlugin("frozen")):
        plugins = [lora, other] if first else [other, lora]
        train(*plugins, n=1)


def test_a_layer_that_is_skipped_at_first_is_no_error():
    with pytest.warns(UserWarning, match=r"1 of 2 adapters .* second: "):
        train(LoRAPlugin(target_modules=".*(first|second)", alpha=1), model=Skipping())


class Detached(Cosine):
    def forward(self, x):
        return self.classifier(self.second(self.first(x)).detach())


def test_no_gradient_at_all_is_an_error():
    with pytest.raises(RuntimeError, match=r"no adapter had a gradient .* first, second"):
        train(LoRAPlugin(), model=Detached())


def test_mambas_dt_proj_is_refused_where_it_is_read_only():
    config = transformers.JambaConfig(
        vocab_size=40,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_experts=1,
        mamba_d_state=4,
        mamba_dt_rank=2,
        use_mamba_kernels=False,
        attn_layer_period=2,
        attn_layer_offset=1,
        pad_token_id=0,
    )

    class Ids(nn.Module):
        def __init__(self):
            super().__init__()
            self.jamba = transformers.JambaModel(config)
            self.classifier = nn.Linear(8, tiny.N_CLASSES)

        def forward(self, x):
            ids = x.abs().mul(10).long().clamp(max=39)
            return self.classifier(self.jamba(input_ids=ids).last_hidden_state[:, -1])

    with pytest.raises(ValueError, match=r"'dt_proj' names jamba.layers.0.mamba.dt_proj, whose"):
        train(LoRAPlugin(target_modules=["in_proj", "dt_proj"], alpha=1), model=Ids())
