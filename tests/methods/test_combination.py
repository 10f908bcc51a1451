"""Methods put together: whose plugins, in which order, and whose settings are whose."""

import pickle

import pytest
from avalanche.training import plugins
from avalanche.training.supervised import Naive
from run_cases import specification

from avalanche_mgem.experiment import METHODS, TEXT_METHODS, find_method
from avalanche_mgem.experiment.building import build_strategy
from avalanche_mgem.experiment.checks import check_runs
from avalanche_mgem.experiment.run import SilentLogger
from avalanche_mgem.huggingface.lora import LoRAPlugin, OLoRAPlugin
from avalanche_mgem.methods.penalties import LwFPlugin, SynapticIntelligencePlugin
from avalanche_mgem.methods.registry import parse_settings, select_methods
from avalanche_mgem.plugins import MGEMPlugin, MIGUPlugin


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
