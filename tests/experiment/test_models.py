import copy
import pickle
import sys

import pytest
import torch
from avalanche.models import IncrementalClassifier, MultiHeadClassifier, MultiTaskModule
from tiny import Call, make_strategy, parameter_vector
from torch import nn

from avalanche_mgem.experiment.models import (
    HEADS,
    MODELS,
    CNNFactory,
    MLPFactory,
    SlimResNet18Factory,
    load_model_factory,
    make_model_factory,
)
from avalanche_mgem.methods.registry import METHODS
from avalanche_mgem.plugins import MGEMPlugin
from avalanche_mgem.streams import load_data, permuted_stream, split_stream

# Every factory of MODELS, small.
SMALL = {
    "mlp": lambda heads: MLPFactory((8,), heads=heads),
    "slim-resnet18": lambda heads: SlimResNet18Factory(1, heads=heads),
    "cnn5": lambda heads: CNNFactory((4, 4, 4, 4, 6), heads=heads),
}
SIZES = {"n_experiences": 2, "train_per_experience": 21, "test_per_experience": 10}


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


def _stream(digits, heads):
    """Domain-, class- and task-incremental, and the classes of the model."""
    if heads == "single":
        return permuted_stream(digits, **SIZES), 10
    if heads == "growing":
        order = list(range(10))
        return split_stream(digits, class_order=order, **SIZES), 10
    return split_stream(digits, task_labels=True, **SIZES), 5


def _model(digits, name, heads):
    torch.manual_seed(3)
    return SMALL[name](heads)(digits.sample_shape, _stream(digits, heads)[1])


def _violated(plugin):
    return plugin.last_projection is not None and plugin.last_projection.violated


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("name", list(MODELS))
def test_mgem_trains_every_model_layer_by_layer(digits, name, heads):
    stream, _ = _stream(digits, heads)
    model = _model(digits, name, heads)
    plugin = MGEMPlugin(8, parameter_groups="layer", memory_strength=0.5)
    violated = []
    watch = Call(after_update=lambda _: violated.append(_violated(plugin)))
    strategy = make_strategy(model, [plugin, watch], batch_size=10)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for experience in stream.train_stream:
        strategy.train(experience)
    strategy.eval(stream.test_stream)
    projection = plugin.last_projection
    assert projection is not None
    layers = {n.rpartition(".")[0] for n, _ in strategy.model.named_parameters()}
    assert len(projection.dual) == len(layers)
    assert any(violated)
    for n, p in strategy.model.named_parameters():
        assert bool(torch.isfinite(p).all())
        assert n not in before or p.shape != before[n].shape or not torch.equal(p, before[n])


@pytest.mark.parametrize("method", ["naive", "replay", "lwf", "gem", "cumulative"])
@pytest.mark.parametrize("heads", HEADS)
def test_baselines_train_convolutions_with_every_head(digits, method, heads):
    stream, _ = _stream(digits, heads)
    strategy = make_strategy(
        _model(digits, "cnn5", heads),
        strategy=METHODS[method].strategy,
        batch_size=10,
        **METHODS[method].resolved_settings(8, 2),
    )
    for experience in stream.train_stream:
        strategy.train(experience)
    strategy.eval(stream.test_stream)
    assert bool(torch.isfinite(parameter_vector(strategy.model)).all())


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("name", list(MODELS))
def test_a_seed_decides_the_model_and_copies_are_alike(digits, name, heads):
    model = _model(digits, name, heads)
    again = _model(digits, name, heads)
    assert str(model) == str(again)
    assert torch.equal(parameter_vector(model), parameter_vector(again))
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(parameter_vector(model), parameter_vector(copied))


@pytest.mark.parametrize("name", list(MODELS))
def test_heads_are_avalanches(digits, name):
    single, growing, multi = (_model(digits, name, heads) for heads in HEADS)
    assert isinstance(single[-1], nn.Linear)
    assert isinstance(growing[-1], IncrementalClassifier)
    assert isinstance(multi, MultiTaskModule)
    assert isinstance(multi.classifier, MultiHeadClassifier)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("name", list(MODELS))
def test_a_repr_makes_the_factory_again_and_a_pickle_too(name, heads):
    for factory in (SMALL[name](heads), make_model_factory(name, heads=heads)):
        assert repr(eval(repr(factory))) == repr(factory)
        assert repr(pickle.loads(pickle.dumps(factory))) == repr(factory)
        assert ("heads" in repr(factory)) == (heads != "single")


def test_reprs_that_runs_are_known_by():
    assert repr(MLPFactory()) == "MLPFactory(hidden=(100, 100))"
    assert (
        repr(SlimResNet18Factory(heads="multi")) == "SlimResNet18Factory(width=20, heads='multi')"
    )
    assert repr(CNNFactory()) == "CNNFactory(channels=(128, 256, 512, 1024, 100))"
    assert repr(CNNFactory((4,), norm="none")) == "CNNFactory(channels=(4,), norm='none')"


@pytest.mark.parametrize(
    ("factory", "shape", "expected"),
    [
        (MLPFactory(), (1, 28, 28), 784 * 100 + 100 + 100 * 100 + 100 + 100 * 10 + 10),
        (SlimResNet18Factory(), (3, 32, 32), 1_094_750),
        (
            CNNFactory(),
            (3, 32, 32),
            9 * (3 * 128 + 128 * 256 + 256 * 512 + 512 * 1024 + 1024 * 100)
            + 2 * (128 + 256 + 512 + 1024 + 100)
            + 1010,
        ),
    ],
)
def test_the_papers_networks_have_this_many_parameters(factory, shape, expected):
    assert sum(p.numel() for p in factory(shape, 10).parameters()) == expected


def test_the_perceptron_is_the_one_it_always_was():
    torch.manual_seed(5)
    model = MLPFactory((7,))((1, 2, 3), 4)
    torch.manual_seed(5)
    first, second = nn.Linear(6, 7), nn.Linear(7, 4)
    expected = {"1": first, "3": second}
    state = {f"{at}.{k}": v for at, m in expected.items() for k, v in m.state_dict().items()}
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("norm", "kind"), [("batch", nn.BatchNorm2d), ("group", nn.GroupNorm), ("none", None)]
)
def test_the_cnn_has_the_normalisation_that_is_asked_for(norm, kind):
    model = CNNFactory((4, 6), norm=norm)((3, 8, 8), 5)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.GroupNorm)]
    assert [type(m) for m in norms if not isinstance(m, kind or ())] == []
    assert len(norms) == (2 if kind else 0)
    assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 5)


@pytest.mark.parametrize("make", [SlimResNet18Factory, CNNFactory])
def test_convolutions_need_images(make):
    with pytest.raises(ValueError, match=rf"{make.__name__}.* needs images .*sample_shape=\(6,\)"):
        make()((6,), 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLPFactory((10, 0)), r"hidden\[1\] must be a whole number >= 1, got 0"),
        (lambda: CNNFactory(()), "channels must have at least one width"),
        (lambda: CNNFactory(norm="layer"), "norm: unknown 'layer'; known: batch, group, none"),
        (lambda: CNNFactory((8, 1.5)), r"channels\[1\] must be a whole number"),
        (lambda: SlimResNet18Factory(0), "width must be a whole number >= 1, got 0"),
        (lambda: MLPFactory(heads="mutli"), "heads: unknown 'mutli'; did you mean 'multi'"),
        (lambda: make_model_factory("cnn"), "model='cnn' is unknown; did you mean 'cnn5'"),
        (lambda: make_model_factory("cnn5", heads="one"), "heads: unknown 'one'"),
        (lambda: make_model_factory("cnn5", hidden=(5,)), "hidden=.* is for the model 'mlp' only"),
        (lambda: make_model_factory("a:b", heads="multi"), "'a:b' decides its heads itself"),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_perceptron_by_name_has_the_widths_given():
    assert make_model_factory("mlp", hidden=[5, 6]).hidden == (5, 6)


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """Write a module into the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    names = []

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        names.append(name)

    yield write
    for name in names:
        sys.modules.pop(name, None)


def test_a_factory_in_the_current_directory_is_found(own_module):
    own_module(
        "own_models",
        "from torch import nn\ndef tiny(shape, n):\n    return nn.Linear(shape[0], n)\n",
    )
    factory = make_model_factory("own_models:tiny")
    assert factory((3,), 2).weight.shape == (2, 3)
    assert pickle.loads(pickle.dumps(factory)) is factory


def test_an_installed_factory_is_found():
    path = "avalanche_mgem.experiment.models:MLPFactory"
    assert load_model_factory(path) is MLPFactory


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("own_models", "must be given as 'package.module:factory', got 'own_models'"),
        (":tiny", "must be given as"),
        ("own_models:", "must be given as"),
        ("own_models:a.b", "must be given as"),
        ("no_such.models:tiny", "there is no module 'no_such' in .* or among the installed"),
        ("own_models.no:tiny", "there is no module 'own_models.no'|importing"),
        ("own_models:tinny", "the module own_models has no 'tinny'; did you mean 'tiny'"),
        ("own_models:VALUE", "must be callable .*, got int"),
        ("own_broken:tiny", r"importing own_broken failed \(ModuleNotFoundError: .*absent"),
        ("own_syntax:tiny", r"importing own_syntax failed \(SyntaxError"),
        ("..own:tiny", "model='..own:tiny': importing"),
    ],
)
def test_a_factory_that_cannot_be_had_is_told_why(own_module, path, message):
    own_module("own_models", "VALUE = 3\ndef tiny(shape, n): ...\n")
    own_module("own_broken", "import absent_package_of_nobody\n")
    own_module("own_syntax", "def tiny(:\n")
    with pytest.raises(ValueError, match=message):
        load_model_factory(path)
