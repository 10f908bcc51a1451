"""What a sweep tries: ranges and choices, those of the registry and those of a file."""

import pytest

from avalanche_mgem.experiment import METHODS, Method, find_method
from avalanche_mgem.methods.space import Choices, Range, load_spaces

SWEPT = [name for name, method in METHODS.items() if method.space]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 1), "low must be below high"),
        ((0.0, float("inf")), "high must be a finite number"),
        (("a", 2), "low must be a finite number"),
        ((0, 4, True), "low must be > 0 where log=True"),
        ((1, 4, "yes"), "log must be True or False"),
    ],
)
def test_a_range_that_is_none_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Range(*arguments)


@pytest.mark.parametrize("values", [(), ("a", "a"), (1, [2]), (None,)])
def test_choices_that_are_none_are_refused(values):
    with pytest.raises(ValueError, match="values must"):
        Choices(values)


def test_integers_and_numbers_are_told_apart():
    assert Range(1, 8).of_integers
    assert not Range(1, 8.0).of_integers
    assert Range(1, 8).holds(8)
    assert not Range(1, 8).holds(2.5)
    assert Range(0.0, 1.0).holds(0)
    assert not Range(0.0, 1.0).holds(True)
    assert not Range(0.0, 1.0).holds("auto")
    assert Choices(("a", True)).holds("a")


@pytest.mark.parametrize("name", SWEPT)
def test_each_method_takes_all_that_its_own_space_has(name):
    method = METHODS[name]
    for setting, dimension in method.space.items():
        assert setting in method.setting_names
        assert dimension.holds(method.settings.get(setting, dimension.corners[0]))
        for value in dimension.corners:
            tried = method.variant(**{setting: value})
            tried.check(tried.resolved_settings(64, 10), 10)
            assert setting not in tried.space  # it is fixed now


def test_methods_with_a_setting_that_matters_have_a_space():
    without = {name for name in METHODS if name not in SWEPT}
    assert without == {
        *("naive", "replay", "agem", "gdumb", "cumulative", "joint", "gem-auto", "initialized")
    }


def test_a_combination_has_the_spaces_of_its_parts():
    space = find_method("mgem-d+migu").space
    assert space.keys() == {"memory_strength", "memory_groups", "mask_fraction"}


def test_a_space_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="space of 'mine' must be"):
        Method("mine", lambda **_: None, space={"alpha": (0, 1)})


def test_a_file_holds_ranges_and_choices(tmp_path):
    path = tmp_path / "space.toml"
    path.write_text(
        "[mgem-d]\n"
        "memory_strength = {low = 0.0, high = 1.0}\n"
        "memory_groups = {low = 2, high = 32, log = true}\n"
        'memory_split = ["random", "class"]\n'
        '["replay+migu"]\nmask_fraction = [0.4, 0.7]\n'
    )
    assert load_spaces(path) == {
        "mgem-d": {
            "memory_strength": Range(0.0, 1.0),
            "memory_groups": Range(2, 32, log=True),
            "memory_split": Choices(("random", "class")),
        },
        "replay+migu": {"mask_fraction": Choices((0.4, 0.7))},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no setting"),
        ("[gem", "is no valid TOML"),
        ("gem = 1", r"'gem' must be a table \[METHOD\], got 1"),
        ("[gem]\nmemory_strength = 1", r"\[gem\] memory_strength: must be a range"),
        ("[gem]\nmemory_strength = {low = 1}", "must be a range, such as"),
        ("[gem]\nmemory_strength = {low = 1, high = 2, step = 1}", "must be a range, such as"),
        ("[gem]\nmemory_strength = {low = 2, high = 1}", "low must be below high"),
        ("[gem]\nmemory_strength = []", "values must name at least one"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_place(text, message, tmp_path):
    path = tmp_path / "space.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as found:
        load_spaces(path)
    assert str(path) in str(found.value)
