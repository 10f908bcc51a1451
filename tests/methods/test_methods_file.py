"""Methods from a TOML file."""

import pytest

from avalanche_mgem.experiment import METHODS, Memory
from avalanche_mgem.methods.methods_file import load_methods


@pytest.fixture
def write(tmp_path):
    def to_file(text):
        path = tmp_path / "methods.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return to_file


def test_methods_are_variants_of_the_known_ones(write):
    weak, blocks, plain = load_methods(
        write(
            '[gem-weak]\nbase = "gem"\nmemory_strength = 0.1\ndescription = "hardly a margin"\n'
            '["my blocks"]\nbase = "mgem-p"\nparameter_groups = { a = ["0.*"], b = ["1.*"] }\n'
            '[other]\nbase = "naive"\n'
        )
    )
    assert (weak.name, weak.description) == ("gem-weak", "hardly a margin")
    assert weak.strategy is METHODS["gem"].strategy
    assert weak.check is METHODS["gem"].check
    assert weak.settings == {"patterns_per_exp": Memory.PER_EXPERIENCE, "memory_strength": 0.1}
    assert blocks.name == "my blocks"
    assert blocks.settings["parameter_groups"] == {"a": ["0.*"], "b": ["1.*"]}
    assert blocks.description.startswith("mgem-p with parameter_groups=")
    assert plain.description == "naive with its own settings"
    assert METHODS["gem"].settings["memory_strength"] == 0.5


def test_a_known_method_may_be_changed_under_its_name(write):
    (gem,) = load_methods(write('[gem]\nbase = "gem"\nmemory_strength = 0'))
    assert (gem.name, gem.settings["memory_strength"]) == ("gem", 0)


def test_a_combination_may_be_a_base(write):
    (mine,) = load_methods(write('[mine]\nbase = "replay+migu"\n"migu.mask_fraction" = 0.2'))
    assert mine.settings["mask_fraction"] == 0.2
    assert mine.description == "replay+migu with migu.mask_fraction=0.2"


def test_a_method_of_the_whole_stream_stays_one(write):
    (mine,) = load_methods(write('[upper]\nbase = "joint"'))
    assert mine.whole_stream


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[weak]\nbase = "gen"', r"\[weak\]: base: unknown method 'gen'; did you mean 'gem'"),
        ("[weak]\nbase = 3", r"\[weak\]: base: unknown method 3; known: naive"),
        ("[weak]\nmemory_strength = 1", r"\[weak\]: base is missing: .*known: naive"),
        (
            '[weak]\nbase = "gem"\nmemory_strenth = 1',
            r"\[weak\]: gem\.memory_strenth: no such setting; did you mean 'memory_strength'",
        ),
        (
            '[weak]\nbase = "gem"\nname = "x"',
            r"\[weak\]: gem\.name: no such setting; known: memory_strength, patterns_per_exp",
        ),
        (
            '[weak]\nbase = "gem"\ntrain_epochs = 2',
            r"\[weak\]: gem\.train_epochs: the comparison decides",
        ),
        ('[gem]\nbase = "agem"', r"\[gem\]: 'gem' is a known method and the base is 'agem'"),
        ('[weak]\nbase = "gem"\ndescription = 1', r"\[weak\]: description must be a text, got 1"),
        ('[""]\nbase = "gem"', "a method must have a name"),
        ("weak = 3", r"\[weak\]: is not a table, got 3; a method is a table such as"),
        ("", "holds no method; a method is a table such as"),
        ("[weak", "is no valid TOML"),
        ("[weak]\n[weak]", "is no valid TOML"),
        (b"\xff\xfe[weak]", "is no valid TOML"),
    ],
)
def test_what_is_wrong_is_said_with_the_file(write, text, message):
    path = write(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_methods(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["", "nothing.toml"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    with pytest.raises(
        ValueError, match=r"cannot be read: (Is a directory|No such file)"
    ) as caught:
        load_methods(str(tmp_path / name))
    assert str(tmp_path) in str(caught.value)
