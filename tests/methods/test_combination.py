"""Methods put together: whose plugins, in which order, and whose settings are whose."""

import pickle

import pytest
import torch
from avalanche.training import plugins
from avalanche.training.supervised import Naive
from run_cases import specification
from tiny import Call, train

from avalanche_mgem.experiment import METHODS, TEXT_METHODS, find_method
from avalanche_mgem.experiment.building import build_strategy
from avalanche_mgem.experiment.checks import check_runs
from avalanche_mgem.experiment.run import SilentLogger
from avalanche_mgem.huggingface.lora import LoRAPlugin, OLoRAPlugin
from avalanche_mgem.methods.penalties import LwFPlugin, SynapticIntelligencePlugin
from avalanche_mgem.methods.registry import parse_settings, select_methods
from avalanche_mgem.plugins import HybridMagnitudePlugin, MGEMPlugin, MIGUPlugin


def strategy_of(name):
    each = specification(name)
    evaluator = plugins.EvaluationPlugin(loggers=[SilentLogger()])
    return build_strategy(each, each.stream(0), evaluator)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("replay+migu", [plugins.ReplayPlugin, MIGUPlugin]),
        ("migu+replay", [plugins.ReplayPlugin, MIGUPlugin]),
        ("migu-update+mgem-d", [MGEMPlugin, MIGUPlugin]),
        (
            "migu+gem+replay+olora",
            [OLoRAPlugin, plugins.ReplayPlugin, plugins.GEMPlugin, MIGUPlugin],
        ),
        ("replay+decay", [plugins.ReplayPlugin, HybridMagnitudePlugin]),
        ("mgem-d-auto+decay", [HybridMagnitudePlugin, MGEMPlugin]),
        ("decay-1+mgem-p+migu", [HybridMagnitudePlugin, MGEMPlugin, MIGUPlugin]),
        ("migu-update+decay", [HybridMagnitudePlugin, MIGUPlugin]),
        ("agem+ewc", [plugins.EWCPlugin, plugins.AGEMPlugin]),
        ("si+lora+lwf", [LoRAPlugin, SynapticIntelligencePlugin, LwFPlugin]),
    ],
)
def test_adapters_come_first_and_migu_last(name, kinds):
    strategy = strategy_of(name)
    assert type(strategy) is Naive
    assert [type(plugin) for plugin in strategy.plugins[: len(kinds)]] == kinds


def test_settings_reach_the_plugin_that_they_are_of():
    method = find_method("gem+mgem-d+migu-random").variant(
        **{"gem.memory_strength": 0.1, "mgem-d.memory_strength": 0.2, "migu-random.seed": 3},
        mask_fraction=0.25,
    )
    gem, mgem, migu = strategy_of(method).plugins[:3]
    strengths = gem.memory_strength, mgem.memory_strength(experience=0, iteration=0)
    assert (*strengths, migu.mask_fraction) == (0.1, 0.2, 0.25)
    assert method.settings["migu-random.seed"] == 3


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("migu", 0.7),
        ("migu-random-update", 0.7),
        ("lora+migu", 0.7),
        ("mgem-d+migu", 0.7),
        ("replay+migu", 0.4),
        ("replay+migu-random-update", 0.4),
        ("lora+replay+migu-update", 0.4),
        ("olora+migu", 0.1),
        ("olora+migu-update", 0.1),
        ("replay+olora+migu", 0.1),
    ],
)
def test_less_is_masked_where_something_else_holds_the_model(name, share):
    assert find_method(name).settings["mask_fraction"] == share


@pytest.mark.parametrize(
    ("name", "restrict"),
    [
        ("mgem-d-auto+decay", "update"),
        ("decay-1+mgem-p", "update"),
        ("mgem-d+hybrid", None),
        ("mgem-d+initialized", None),
    ],
)
def test_mgem_restricts_updates_behind_a_hybrid_that_scales_them(name, restrict):
    assert find_method(name).settings.get("restrict") == restrict


class Steps(plugins.SupervisedPlugin):
    """Where the parameters were, and where they are after each step."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def before_update(self, strategy, **kwargs):
        self.before = {n: p.detach().clone() for n, p in strategy.model.named_parameters()}

    def after_update(self, strategy, **kwargs):
        task = strategy.clock.train_exp_counter + 1
        named = strategy.model.named_parameters()
        self.steps.append((task, {n: p.detach() - self.before[n] for n, p in named}))


def test_mgems_cone_holds_for_the_step_that_decay_has_scaled():
    strategy = strategy_of(find_method("mgem-d-auto+decay-1").variant(memory_strength=0.0))
    mgem, looked = strategy.plugins[1], []
    steps = Steps()

    def look(strategy):
        _, step = steps.steps[-1]
        flat = torch.cat([value.flatten() for value in step.values()])
        for row in mgem._matrix.rows[: len(mgem._bounds)]:
            assert float(row @ -flat) >= -1e-4 * float(row.norm() * flat.norm()) - 1e-7
            looked.append(row)

    strategy.plugins += [steps, Call(after_update=look)]
    train(strategy, specification().stream(0).train_stream)
    assert len(looked) > 10


@pytest.mark.parametrize("name", ["migu+decay", "migu-update+decay", "replay+decay"])
def test_steps_of_the_body_shrink_beside_other_methods(name):
    """The same model, in another task: what the first step would be is scaled by t^-p."""
    lengths = {}
    for exponent in (0.0, 1.0):
        torch.manual_seed(7)
        strategy = strategy_of(find_method(name).variant(magnitude_decay=exponent))
        strategy.plugins.append(steps := Steps())
        train(strategy, specification().stream(0).train_stream)
        first = {}
        for task, step in steps.steps:
            first.setdefault(task, step)
        lengths[exponent] = {
            task: [float(value.norm()) for value in step.values()] for task, step in first.items()
        }
        if "migu" in name:
            (layer, kept), *_ = strategy.plugins[1].last_mask.items()
            moved = steps.steps[-1][1][f"{layer}.weight"].abs().sum(1) > 0
            assert moved.any()
            assert not (moved & ~kept).any()
    # The second task begins where both are the same.
    plain, scaled = lengths[0.0][2], lengths[1.0][2]
    assert scaled == pytest.approx([0.5 * plain[0], 0.5 * plain[1], *plain[2:]], rel=1e-4)


def test_a_setting_goes_by_its_own_name_where_it_can():
    changes = parse_settings(["replay+migu.mask_fraction=0.3", "replay+migu.replay.mem_size=7"])
    (method,) = select_methods("replay+migu", changes)
    assert method.settings == {"mem_size": 7, "mask_fraction": 0.3, "freeze": "gradient"}
    shared = parse_settings(["lora+migu.migu.seed=1", "lora+migu.lora.seed=2"])
    (method,) = select_methods("lora+migu", shared)
    assert (method.settings["migu.seed"], method.settings["lora.seed"]) == (1, 2)


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("lora+migu", "seed", r"lora\+migu\.seed: several parts .* name lora\.seed or migu\.seed"),
        ("replay+migu", "mask_fractio", r"did you mean 'mask_fraction'"),
        ("replay+migu", "lora.rank", r"replay\+migu\.lora\.rank: no such setting"),
        ("replay+migu", "train_epochs", "the comparison decides"),
    ],
)
def test_a_setting_of_nobody_or_of_several_is_refused(name, setting, message):
    with pytest.raises(ValueError, match=message):
        find_method(name).variant(**{setting: 1})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("naive+migu", "'naive' is no plugin .* initialized, frozen, hybrid, and what begins"),
        ("replay+gdumb", "'gdumb' is no plugin"),
        ("joint+migu", "'joint' is no plugin"),
        ("cumulative+migu", "'cumulative' is no plugin"),
        ("migu+migu", "two of its parts"),
        ("migu+migu-update", "two of its parts"),
        ("mgem-p+mgem-d", "two of its parts"),
        ("lora+olora", "two of its parts"),
        ("replay+", "unknown method ''"),
        ("replay+miug", "unknown method 'miug'; did you mean 'migu'"),
    ],
)
def test_what_cannot_be_combined_is_said(name, message):
    with pytest.raises(ValueError, match=message):
        find_method(name)


@pytest.mark.parametrize(
    ("target", "value"),
    [
        ("replay+migu.mask_fraction", 1.0),
        ("replay+migu.mem_size", 0),
        ("ewc+migu.ewc_lambda", -1),
        ("gem+mgem-d.gem.memory_strength", -1),
        ("gem+mgem-d.mgem-d.memory_strength", "abc"),
        ("replay+migu.target_modules", ["nothing"]),
        ("mgem-d+migu.heads", ["nothing"]),
        ("mgem-d+migu.migu.seed", -1),
    ],
    ids=str,
)
def test_a_bad_setting_is_named_with_its_part(target, value):
    name, _, setting = target.partition(".")
    method = find_method(name).variant(**{setting: value})
    with pytest.raises(ValueError, match=rf"^{target}\b".replace("+", r"\+")):
        check_runs([specification(method)])


def test_a_combination_has_a_key_and_can_be_sent():
    keys = {specification(name).key for name in ("replay+migu", "replay", "migu", "ewc+migu")}
    assert len(keys) == 4
    one = specification("mgem-d+migu")
    again = pickle.loads(pickle.dumps(one))
    assert again.key == one.key
    assert one.description()["strategy"] == [
        "avalanche_mgem.plugins.mgem.MGEMPlugin",
        "avalanche_mgem.plugins.migu.MIGUPlugin",
    ]
    assert "peft" in specification("lora+migu").versions
    assert "peft" not in one.versions


def test_the_methods_for_text_are_known():
    assert [find_method(name).name for name in TEXT_METHODS] == list(TEXT_METHODS)
    assert {"migu", "migu-update", "lora", "inclora", "olora"} < set(METHODS)
