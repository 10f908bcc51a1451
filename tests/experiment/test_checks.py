"""What is wrong with a comparison is said before anything is trained."""

from types import SimpleNamespace

import pytest
import torch
from avalanche.benchmarks.scenarios.online import split_continuous_linear_decay_stream
from avalanche.training.supervised import JointTraining, Naive
from run_cases import growing_model, permuted, specification

from avalanche_mgem.experiment import METHODS, Method, NamedStream, Training
from avalanche_mgem.experiment.checks import check_device, check_runs

BAD_SETTINGS = [
    ("gem.memory_strength", "abc"),
    ("gem.memory_strength", -1),
    ("gem.patterns_per_exp", 0),
    ("gem.patterns_per_exp", 2.5),
    ("replay.mem_size", 0),
    ("replay.mem_size", "many"),
    ("ewc.ewc_lambda", "abc"),
    ("ewc.ewc_lambda", float("inf")),
    ("ewc.mode", "abc"),
    ("si.si_lambda", -1),
    ("si.eps", 0.0),
    ("lwf.alpha", [1.0, 2.0]),
    ("lwf.temperature", 0),
    ("gdumb.mem_size", 0),
    ("agem.sample_size", 2),
    ("agem.patterns_per_exp", -3),
    ("mgem-d.memory_groups", 17),
    ("mgem-d.memory_groups", "8"),
    ("mgem-d.memory_split", "clas"),
    ("mgem-d.seed", "abc"),
    ("mgem-d.memory_strength", float("nan")),
    ("mgem-p.parameter_groups", 10**6),
    ("mgem-p.parameter_groups", 0),
    ("mgem-p.parameter_groups", "layers"),
    ("mgem-p.parameter_groups", {"a": ["nothing*"]}),
    ("mgem-p.parameter_groups", {"a": ["1.*"]}),
    ("mgem-p.solver", "exat"),
    ("mgem-p.ridge", 0.0),
]


@pytest.fixture(autouse=True)
def _no_training(monkeypatch):
    monkeypatch.setattr(Naive, "train", lambda *_: pytest.fail("trained"))


@pytest.mark.parametrize(("target", "value"), BAD_SETTINGS, ids=str)
def test_a_bad_setting_is_named_with_its_method(target, value):
    name, _, setting = target.partition(".")
    method = METHODS[name].variant(**{setting: value})
    with pytest.raises(ValueError, match=rf"^{target}\b"):
        check_runs([specification("naive"), specification(method)])


@pytest.mark.parametrize("name", ["agem", "mgem-d"])
def test_a_memory_that_is_too_small_is_named(name):
    with pytest.raises(ValueError, match=rf"^{name}\..*: from memory=2\)"):
        check_runs([specification(name, training=Training(memory=2))])


@pytest.mark.parametrize("model", [specification().model, growing_model])
def test_good_runs_pass_and_the_random_state_stays(model):
    before = torch.get_rng_state()
    check_runs([specification(name, model=model) for name in METHODS])
    assert torch.equal(torch.get_rng_state(), before)
    check_runs([])


@pytest.mark.parametrize("device", ["abc", "cuda:99", "meta", ""])
def test_a_device_that_is_not_there_is_named(device):
    with pytest.raises(ValueError, match=f"device='{device}' cannot be used here"):
        check_device(device)
    check_device("cpu")


def uneven(seed):
    scenario = permuted(seed)
    return SimpleNamespace(train_stream=scenario.train_stream, test_stream=[])


def blurry(seed):
    scenario = permuted(seed)
    parts = split_continuous_linear_decay_stream(
        scenario.train_stream, 6, iters_per_virtual_epoch=1, beta=3, shuffle=True
    )
    return SimpleNamespace(train_stream=list(parts), test_stream=scenario.test_stream)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stream": lambda seed: [1, 2]}, "stream must return an Avalanche scenario .* got list"),
        ({"stream": uneven}, "got 3 training and 0 test experiences"),
        ({"stream": blurry}, "stream must have training experiences that are a task each"),
        ({"stream": NamedStream("permuted-digits", {"n_experiences": 0})}, "n_experiences"),
        ({"model": lambda shape, classes: None}, "naive: model must return a torch.nn.Module"),
        ({"method": Method("mine", lambda **_: 1 / 0)}, "division"),
        ({"method": Method("mine", lambda model: None)}, "mine: .*unexpected keyword"),
        ({"method": Method("mine", JointTraining)}, "^mine: .* whole_stream=True"),
    ],
)
def test_what_a_user_brings_along_is_tried(changes, message):
    with pytest.raises((ValueError, ZeroDivisionError), match=message):
        check_runs([specification(**changes)])
