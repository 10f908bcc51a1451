"""Settings are checked before a strategy is made, and in the words that the strategy has for it."""

import math
import pickle
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

from avalanche_mgem.experiment import METHODS
from avalanche_mgem.huggingface.lora import LoRAPlugin, OLoRAPlugin
from avalanche_mgem.methods import settings as rules
from avalanche_mgem.methods.settings import Choice, check_baseline, check_mgem
from avalanche_mgem.plugins import HybridMagnitudePlugin, MGEMPlugin, MIGUPlugin

# Rules, a plugin that has arguments of these names, and what it needs besides.
RULES_OF = [
    (rules.MGEM_RULES, MGEMPlugin, {"patterns_per_experience": 64}),
    (rules.MIGU_RULES, MIGUPlugin, {}),
    (rules.HYBRID_RULES, HybridMagnitudePlugin, {}),
    (rules.LORA_RULES, OLoRAPlugin, {}),
]
VALUES = [
    *(-1, 0, 1, 2, 3.5, 0.0, 0.5, 1.0, -0.5, 1.5, math.nan, math.inf, True, None, "", "2", "exat"),
    *("layer", "auto", "random", "update", [], {}, int, len, lambda *_: 0.5),
]


def words_of(hint):
    """The words that a type names; none where it takes numbers or names of layers as well."""
    literals = [part for part in (hint, *get_args(hint)) if get_origin(part) is Literal]
    others = {*get_args(hint)} - {*literals} if literals[:1] != [hint] else set()
    return set(get_args(literals[0])) if literals and not others & {int, float} else set()


def refusal(call, *arguments, **keywords):
    """What a call says of a value; None: it takes it."""
    try:
        call(*arguments, **keywords)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("of", "plugin", "needs"), RULES_OF, ids=lambda x: getattr(x, "__name__", "")
)
def test_a_value_is_refused_as_the_plugin_refuses_it(of, plugin, needs):
    told = 0
    for name, rule in of.items():
        for value in VALUES:
            early, late = refusal(rule, name, value), refusal(plugin, **{**needs, name: value})
            if early is not None:  # the plugin may know more: a pair that does not go together
                assert early == late, (name, value)
                told += 1
    assert told > 5 * len(of)


@pytest.mark.parametrize(
    ("of", "plugin", "needs"), RULES_OF, ids=lambda x: getattr(x, "__name__", "")
)
def test_the_words_are_those_of_the_plugins_types(of, plugin, needs):
    told = {name: set(rule.words) for name, rule in of.items() if isinstance(rule, Choice)}
    hints = get_type_hints(plugin.__init__)
    assert told == {name: words for name in hints if (words := words_of(hints[name]))}


def test_more_groups_than_patterns_are_refused_as_the_plugin_does():
    given = {"patterns_per_experience": 4, "memory_groups": 8}
    early = refusal(check_mgem, given, 3)
    assert early == refusal(MGEMPlugin, **given)
    assert early.startswith("memory_groups=8 needs at least 8 patterns")


def test_adapters_take_the_rules_of_the_one_with_the_most_arguments():
    assert {"rank", "alpha", "dropout", "train_heads", "seed"} < rules.LORA_RULES.keys()
    for name in ("rank", "alpha", "dropout"):
        assert refusal(LoRAPlugin, **{name: -1}) == refusal(rules.LORA_RULES[name], name, -1)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_with_settings_checks_them_here_and_in_workers(name):
    method = METHODS[name]
    assert method.check is not None or not method.settings
    pickle.loads(pickle.dumps(method.check))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"si_lambda": -1}, "si_lambda must be a finite number >= 0"),
        ({"si_lambda": []}, "si_lambda must have at least 1 values"),
        ({"si_lambda": [1.0, "2"]}, "si_lambda must be a finite number >= 0, got '2'"),
        ({"alpha": "abc"}, "alpha must be a finite number"),
        ({"alpha": [1.0, 2.0]}, r"alpha must have at least 3 values .*got \[1.0, 2.0\]"),
        ({"temperature": 0}, "temperature must be a finite number > 0"),
        ({"eps": 0.0}, "eps must be a finite number > 0"),
        ({"mem_size": 0}, "mem_size must be a whole number >= 1"),
        ({"mode": "abc"}, "mode: unknown 'abc'"),
        ({"sample_size": 2}, "sample_size=2 must be at least the number of experiences, 3"),
    ],
)
def test_bad_settings_of_avalanches_strategies_are_named_first(settings, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        check_baseline(settings, 3)


def test_weights_may_be_one_for_each_experience():
    check_baseline({"alpha": [0.0, 1, 2.0]}, 3)
    check_baseline({"si_lambda": (1.0,)}, 3)
