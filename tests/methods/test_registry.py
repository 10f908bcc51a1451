"""Methods by name and their settings."""

import io
from dataclasses import replace

import pytest
from avalanche.training.supervised import Naive
from rich.console import Console

from avalanche_mgem.experiment import DEFAULT_METHODS, METHODS, Memory, Method, methods_table
from avalanche_mgem.methods.registry import parse_settings, select_methods

MEMORIES = ("replay", "gdumb", "gem", "mgem-d")


def with_options(*, model, alpha=1.0, **options):
    return Naive(model=model, **options)


def without_options(*, model, optimizer, criterion, alpha=1.0):
    return Naive(model=model, optimizer=optimizer, criterion=criterion)


def test_the_methods_of_the_first_comparison_are_known():
    ours = ["mgem-p", "mgem-d", "mgem-pd", "mgem-p-approx", "mgem-d-approx"]
    theirs = ["naive", "replay", "ewc", "si", "lwf", "agem", "gem", "gdumb", "cumulative", "joint"]
    assert list(METHODS)[: len(theirs) + len(ours)] == theirs + ours
    compared = ("mgem-p", "mgem-d", "mgem-d-approx", "mgem-d-auto", "migu")
    assert ("naive", "replay", "ewc", "agem", "gem", *compared) == DEFAULT_METHODS
    assert [name for name, method in METHODS.items() if method.whole_stream] == ["joint"]
    assert all(name == method.name for name, method in METHODS.items())
    assert all(method.description for method in METHODS.values())


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_is_one_that_the_strategy_takes(name):
    method = METHODS[name]
    assert set(method.settings) <= method.setting_names
    same = method.variant(**method.settings)
    assert replace(same, space=method.space) == method
    assert not set(same.space) & set(method.settings)
    if method.check is not None:
        method.check(method.resolved_settings(64, 10), 10)


def test_memories_are_as_large_for_every_method():
    sizes = {name: METHODS[name].resolved_settings(5, 3) for name in MEMORIES}
    assert sizes["replay"] == sizes["gdumb"] == {"mem_size": 15}
    assert sizes["gem"]["patterns_per_exp"] == sizes["mgem-d"]["patterns_per_experience"] == 5
    assert Memory.TOTAL.resolve(5, 3) == 15


def test_a_variant_leaves_the_method_alone():
    before = dict(METHODS["gem"].settings)
    variant = METHODS["gem"].variant("gem-0", memory_strength=0.0)
    assert (variant.name, variant.settings["memory_strength"]) == ("gem-0", 0.0)
    assert METHODS["gem"].settings == before
    assert METHODS["gem"].variant(memory_strength=1.0).name == "gem"
    assert METHODS["joint"].variant("upper").whole_stream


def test_unknown_settings_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"mgem-d\.memory_group: .* 'memory_groups'"):
        METHODS["mgem-d"].variant(memory_group=8)
    with pytest.raises(ValueError, match=r"naive\.alpha: no such setting; it has none"):
        METHODS["naive"].variant(alpha=1)
    with pytest.raises(ValueError, match=r"gem\.train_epochs: the comparison decides"):
        METHODS["gem"].variant(train_epochs=3)
    with pytest.raises(ValueError, match=r"gem\.name: no such setting"):
        METHODS["gem"].variant(name="another")
    with pytest.raises(ValueError, match=r"gem\.self: the comparison decides"):
        METHODS["gem"].variant(**{"self": 3})
    with pytest.raises(ValueError, match=r"mine\.beta: no such setting; .*alpha"):
        Method("mine", without_options).variant(beta=1)
    assert Method("mine", with_options).variant(beta=1).settings == {"beta": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("", Naive), "name of a method"), ((3, Naive), "name of a"), (("x", "naive"), "strategy of")],
)
def test_a_method_needs_a_name_and_something_to_call(arguments, message):
    with pytest.raises(ValueError, match=message):
        Method(*arguments)


def test_methods_are_selected_by_name_or_brought_along():
    mine = Method("mine", with_options)
    chosen = select_methods(["gem", mine], {"gem": {"memory_strength": 0}, "mine": {"alpha": 2}})
    assert [method.name for method in chosen] == ["gem", "mine"]
    assert chosen[0].settings["memory_strength"] == 0
    assert chosen[1].settings == {"alpha": 2}
    assert select_methods("gem", {}) == [METHODS["gem"]]
    assert select_methods(mine, {}) == [mine]


@pytest.mark.parametrize(
    ("methods", "changes", "message"),
    [
        (["mgem-dd"], {}, "unknown method 'mgem-dd'; did you mean 'mgem-d'"),
        ([3], {}, "unknown method 3"),
        (["gem", "gem"], {}, "'gem' is named twice"),
        ([], {}, "at least one"),
        (["gem"], {"agem": {"sample_size": 3}}, "'agem' is not among the methods; did you mean"),
        (["gem"], {"gem": {"gamma": 3}}, "gem.gamma: no such setting"),
    ],
)
def test_what_cannot_be_selected_is_named(methods, changes, message):
    with pytest.raises(ValueError, match=message):
        select_methods(methods, changes)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8", 8),
        ("0.5", 0.5),
        ("layer", "layer"),
        ("None", None),
        ("{'a': ['*.weight']}", {"a": ["*.weight"]}),
        ("a=b", "a=b"),
        ("", ""),
    ],
)
def test_values_are_literals_or_text(text, value):
    assert parse_settings([f" mgem-p.setting ={text} "]) == {"mgem-p": {"setting": value}}


def test_settings_of_a_method_are_gathered():
    parsed = parse_settings(["gem.a=1", "naive.b=2", "gem.c=3", "gem.a=4"])
    assert parsed == {"gem": {"a": 4, "c": 3}, "naive": {"b": 2}}


@pytest.mark.parametrize("text", ["gem.a", "gem=1", ".a=1", "gem.=1", "", "="])
def test_other_forms_are_refused(text):
    with pytest.raises(ValueError, match=r"set: .*METHOD\.SETTING=VALUE"):
        parse_settings([text])


def shown(width, *arguments):
    console = Console(width=width, file=io.StringIO())
    console.print(methods_table(*arguments))
    return console.file.getvalue()


def test_the_table_shows_every_method_its_description_and_settings():
    assert max(map(len, shown(80).splitlines())) <= 80
    text = shown(120)
    rows = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert set(METHODS) <= set(rows)
    for name in ("naive", "ewc", "gem", "mgem-d-approx"):
        assert METHODS[name].description in rows[name]
    assert rows["replay"].rstrip().endswith("mem_size=memory x experiences")
    assert rows["gem"].rstrip().endswith("patterns_per_exp=memory")
    assert rows["naive"].rstrip().endswith("-")
    assert "memory_strength=0.5" in text
    assert "Without names" in text


def test_the_table_shows_other_methods_as_they_are_named():
    text = shown(80, [METHODS["gem"].variant("[red]gem", memory_strength=0.25)])
    assert "[red]gem" in text
    assert "memory_strength=0.25" in text
    assert "naive  " not in text
