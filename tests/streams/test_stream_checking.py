"""What is wrong with a stream by name is said before its data are read."""

import inspect
import subprocess
import sys

import numpy as np
import pytest

from avalanche_mgem.streams import STREAM_KINDS, make_stream, naming
from avalanche_mgem.streams.checking import check_stream


def keywords(function):
    parameters = inspect.signature(function).parameters
    return {name: p for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}


@pytest.mark.parametrize("kind", STREAM_KINDS)
def test_the_arguments_of_streams_are_those_of_their_functions(kind):
    function = STREAM_KINDS[kind].resolve()
    assert naming._ARGUMENTS[kind] == tuple(keywords(function))
    needed = [p.name for p in keywords(function).values() if p.default is p.empty]
    assert needed == ([] if kind == naming.DOMAINS else ["n_experiences"])


def test_the_arguments_of_text_streams_are_those_of_the_function():
    function = naming._TEXT_STREAM.resolve()
    assert {*naming._ARGUMENTS[naming.TEXT], "folder"} == {"tasks", *keywords(function)}


BAD = [
    ("permuted-digit", {"n_experiences": 2}),
    ("permuted-digits", {}),
    ("permuted-digits", {"n_experience": 2}),
    ("permuted-digits", {"n_experiences": 0}),
    ("permuted-digits", {"n_experiences": 2.5}),
    ("permuted-digits", {"n_experiences": 2, "train_per_experience": 0}),
    ("permuted-digits", {"n_experiences": 2, "test_per_experience": "3"}),
    ("permuted-digits", {"n_experiences": 2, "image_size": 0}),
    ("permuted-digits", {"n_experiences": 2, "task_labels": "no"}),
    ("permuted-digits", {"n_experiences": 2, "class_order": "1,0"}),
    ("permuted-digits+nois", {"n_experiences": 2}),
    ("permuted-digits+noise:9", {"n_experiences": 2}),
    ("rotated-digits", {"n_experiences": 2, "max_angle": -1}),
    ("split-digits", {"n_experiences": 11}),
    ("split-digits", {"n_experiences": 2, "class_order": "1,x"}),
    ("split-digits", {"n_experiences": 2, "class_order": "1,0"}),
    ("split-digits", {"n_experiences": 2, "class_order": [0, 0]}),
    ("correlated-digits", {"n_experiences": 2, "shared_classes": 1.5}),
    ("correlated-digits", {"n_experiences": 2, "classes_per_experience": 0}),
    ("correlated-digits", {"n_experiences": 4, "classes_per_experience": 6}),
    ("correlated-digits", {"n_experiences": 13}),
    ("split:none.npz", {"n_experiences": 2}),
    ("split:none/", {"n_experiences": 2}),
    ("split-mnist", {"n_experiences": 2, "data_root": "none", "download": False}),
    ("domains-digit-five", {"data_root": "none", "download": False}),
    ("domains-digit-five", {"domains": "mnist,usp"}),
    ("domains:a.npz,b.npz", {}),
    ("text", {"tasks": "1"}),
    ("text", {"tasks": "7", "tokenizer": len}),
    ("text", {"tasks": "1", "tokenizer": len, "length": 3}),
]


def refusal(call, name, arguments):
    try:
        call(name, **arguments)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize(("name", "arguments"), BAD, ids=str)
def test_it_is_said_as_by_whoever_builds_the_stream(name, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    early = refusal(check_stream, name, arguments)
    assert early == refusal(make_stream, name, arguments) is not None


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "split-cifar100",
            {"n_experiences": 101},
            "n_experiences=101 is more than the 100",
        ),
        ("domains-digit-five", {"n_experiences": 6}, "n_experiences=6 is more than the 5 domains"),
        ("domains-digit-five", {"image_size": 0}, "image_size must be a whole number >= 1"),
    ],
)
def test_it_is_said_before_anything_is_downloaded(name, arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        check_stream(name, data_root=tmp_path, **arguments)


@pytest.mark.parametrize(
    ("name", "arguments", "length"),
    [
        ("permuted-digits", {"n_experiences": 20, "train_per_experience": 5}, 20),
        ("rotated-digits+noise:2,none", {"n_experiences": 3, "max_angle": 90}, 3),
        ("split-digits", {"n_experiences": 10, "class_order": "9,8,7,6,5,4,3,2,1,0"}, 10),
        ("correlated-digits", {"n_experiences": 3, "shared_classes": 0.5}, 3),
        ("domains:a.npz,b.npz", {}, 2),
        ("domains:a.npz,b.npz", {"domains": ["b.npz"]}, 1),
        ("domains:a.npz,b.npz", {"n_experiences": 1}, 1),
    ],
)
def test_what_is_right_passes_and_its_length_is_known(
    name, arguments, length, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    data = {f"x_{part}": np.random.default_rng(0).random((30, 6, 6)) for part in ("train", "test")}
    data |= {f"y_{part}": np.arange(30) % 3 for part in ("train", "test")}
    for file in ("a.npz", "b.npz"):
        np.savez(tmp_path / file, **data)
    assert check_stream(name, **arguments) == length
    assert len(make_stream(name, **arguments).train_stream) == length


def test_classes_of_a_file_of_ones_own_are_not_guessed(tmp_path):
    """A cifar100.npz may hold other classes than CIFAR-100."""
    np.savez(tmp_path / "cifar100.npz", x_train=np.zeros(1))
    assert check_stream("split-cifar100", data_root=tmp_path, n_experiences=500) == 500


def test_nothing_heavy_is_imported_for_it():
    code = (
        "import sys\n"
        "from avalanche_mgem.streams.checking import check_stream\n"
        "for name in ('permuted-digits', 'split-digits', 'correlated-digits+noise'):\n"
        "    check_stream(name, n_experiences=2)\n"
        "print({'avalanche', 'torch', 'torchvision', 'sklearn', 'scipy'} & set(sys.modules))\n"
    )
    call = [sys.executable, "-c", code]
    assert subprocess.run(call, capture_output=True, text=True, check=True).stdout == "set()\n"
