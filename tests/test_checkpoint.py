"""Checkpoints: what is continued equals what was never stopped, and nothing is ever half there."""

import errno
import io
import os
import pickle
import platform
import random
import stat
import sys
from pathlib import Path

import checkpoint_runs
import numpy as np
import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.logging import CSVLogger, InteractiveLogger, TensorboardLogger, TextLogger
from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.supervised import AGEM, Naive, Replay
from checkpoint_runs import Run, in_a_process_of_its_own
from hypothesis import given
from hypothesis import strategies as st
from tiny import Call, class_stream, domain_stream, make_model, make_strategy, parameter_vector
from torch import nn
from torch.utils.data import Dataset

from avalanche_mgem import HybridMagnitudePlugin, MGEMPlugin, MIGUPlugin
from avalanche_mgem.checkpoint import (
    CheckpointError,
    frame,
    load_checkpoint,
    save_checkpoint,
)
from avalanche_mgem.checkpoint.identity import device_map
from avalanche_mgem.checkpoint.pickling import Surroundings, dump, load
from avalanche_mgem.checkpoint.places import find_places
from avalanche_mgem.checkpoint.random_states import restore_random_states
from avalanche_mgem.checkpoint.samples import Samples, fingerprint_of
from avalanche_mgem.evaluation import AccuracyMatrix, ScalarCSVLogger
from avalanche_mgem.experiment import METHODS
from avalanche_mgem.experiment.run import quiet_avalanche
from avalanche_mgem.model.randomness import fingerprint

CPU = torch.device("cpu")
LORA = ("lora", "inclora", "olora")  # their packages take seconds to import
OFTEN_KILLED = ("mgem-pd", "replay")
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills copies of a process")


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def stopped_after_two(folder, methods):
    """Outcomes of whole runs; what they were after two of three experiences is in the folder."""
    outcomes = {}
    for method in methods:
        run = Run(method)
        path = folder / method
        last = min(2, len(run.parts))
        run.train(0, last, path)
        before = fingerprint(CPU)
        save_checkpoint(run.strategy, path)
        assert fingerprint(CPU) == before
        outcomes[method] = run.train(last).outcome()
    return outcomes


def trained(*plugins, n=1, **arguments):
    made = make(*plugins, **arguments)
    for experience in domain_stream().train_stream[:n]:
        made.train(experience)
    return made


def make(*plugins, metrics=(), loggers=(), model=None, strategy=Naive, **arguments):
    model = make_model() if model is None else model
    made = make_strategy(model, plugins, strategy=strategy, **arguments)
    made.evaluator.metrics, made.evaluator.loggers = list(metrics), list(loggers)
    return made


# What is continued


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """What one other process, which takes seconds to start, does for two tests.

    Outcomes of whole runs, of those that it continued, and what it told of those that it killed.
    """
    folder = tmp_path_factory.mktemp("elsewhere")
    methods = [name for name in METHODS if name not in LORA]
    whole = stopped_after_two(folder, methods)
    often = OFTEN_KILLED if hasattr(os, "fork") else ()
    done = in_a_process_of_its_own(
        checkpoint_runs.continued_and_killed, str(folder), methods, often
    )
    return whole, *done


def test_every_method_goes_on_in_another_process_to_the_bit(elsewhere):
    whole, continued, _ = elsewhere
    assert continued == whole


@pytest.mark.slow
def test_adapters_go_on_in_another_process_to_the_bit(tmp_path):
    expected = stopped_after_two(tmp_path, LORA)
    assert in_a_process_of_its_own(checkpoint_runs.continued, str(tmp_path), LORA) == expected


@forks
def test_killed_at_random_moments_a_run_gives_what_it_would_have_given(elsewhere):
    whole, _, told = elsewhere
    assert told["outcomes"].keys() == set(OFTEN_KILLED)
    for method, outcomes in told["outcomes"].items():
        assert outcomes
        assert all(outcome == whole[method] for outcome in outcomes)
    assert told["hits"] > 0


@forks
@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_killed_many_times(method, tmp_path):
    expected = Run(method).train().outcome()
    told = in_a_process_of_its_own(checkpoint_runs.killed, str(tmp_path), [method], 20, 1)
    assert all(outcome == expected for outcome in told["outcomes"][method])
    assert told["hits"] > 0


@forks
@pytest.mark.slow
def test_killed_at_every_line_of_saving_it_has_the_old_or_the_new_and_one_before(tmp_path):
    found = in_a_process_of_its_own(checkpoint_runs.killed_at_every_line, str(tmp_path))
    assert found[0] == [2, 1]  # killed before it did anything
    assert found[-1] == [3, 2]  # not killed
    assert {tuple(each) for each in found} == {(2, 1), (2, 2), (3, 2)}
    assert len(found) > 30


@pytest.mark.parametrize("method", ["agem", "mgem-pd"])
def test_a_run_that_saves_is_a_run_that_does_not(method, tmp_path):
    assert Run(method).train(path=tmp_path / "run").outcome() == Run(method).train().outcome()


def test_a_text_model_goes_on_with_its_adapters(tmp_path):
    from huggingface import text_checkpoints

    expected = text_checkpoints.make().train().outcome()
    text_checkpoints.make().train(0, 2, tmp_path / "run")
    run = text_checkpoints.make(seed=3)
    assert run.load(tmp_path / "run") == 2
    assert run.train(2).outcome() == expected


@pytest.mark.parametrize("setting", ["growing head", "a head a task", "batch norm", "dropout"])
def test_all_three_plugins_on_models_that_change(setting, tmp_path):
    stream = (
        class_stream(setting == "a head a task") if "head" in setting else domain_stream()
    ).train_stream

    def strategy():
        torch.manual_seed(5)
        plugins = MGEMPlugin(8, memory_groups=2), MIGUPlugin(), HybridMagnitudePlugin()
        return make(*plugins, model=make_model(setting))

    whole = strategy()
    for experience in stream:
        whole.train(experience)
        if experience.current_experience == 1:
            save_checkpoint(whole, tmp_path / "run")
    torch.manual_seed(17)
    resumed, start = load_checkpoint(strategy(), tmp_path / "run")
    for experience in stream[start:]:
        resumed.train(experience)
    assert torch.equal(parameter_vector(resumed.model), parameter_vector(whole.model))
    assert not any(m._forward_hooks for m in resumed.model.modules())


def test_without_a_file_a_run_begins(tmp_path):
    strategy = make()
    before, state = fingerprint(CPU), dict(vars(strategy))
    assert load_checkpoint(strategy, tmp_path / "none") == (strategy, 0)
    assert fingerprint(CPU) == before
    assert vars(strategy) == state
    with pytest.raises(FileNotFoundError):
        load_checkpoint(strategy, tmp_path / "none", missing_ok=False)


# What is filled


def test_names_in_the_program_stay_good(tmp_path):
    plugin, metric = MGEMPlugin(8), AccuracyMatrix()
    save_checkpoint(trained(plugin, metrics=[metric], n=2), tmp_path / "run")
    mine, matrix, model = MGEMPlugin(8), AccuracyMatrix(), make_model()
    strategy = make(mine, metrics=[matrix], model=model)
    first, optimizer, clock = model[0], strategy.optimizer, strategy.clock
    returned, start = load_checkpoint(strategy, tmp_path / "run")
    assert (returned, start) == (strategy, 2)
    assert strategy.plugins[0] is mine
    assert len(mine.memory) == 2
    assert strategy.evaluator.metrics[0] is matrix
    assert (strategy.model, strategy.model[0], strategy.optimizer) == (model, first, optimizer)
    assert strategy.clock is clock is strategy.plugins[-1]
    assert optimizer.param_groups[0]["params"][0] is first.weight


def test_random_states_are_those_of_the_run(tmp_path):
    random.seed(3), np.random.seed(4), torch.manual_seed(5)
    save_checkpoint(make(), tmp_path / "run")
    drawn = random.random(), np.random.rand(), float(torch.rand(()))
    load_checkpoint(make(), tmp_path / "run")
    assert (random.random(), np.random.rand(), float(torch.rand(()))) == drawn


class Net(nn.Sequential):
    """Stands for a class of a script."""


def test_classes_of_a_script_are_not_copied(tmp_path, monkeypatch):
    monkeypatch.setattr(Net, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "Net", Net, raising=False)
    model = Net(nn.Linear(6, 8), Net(nn.Linear(8, 6)))
    strategy = trained(model=model)
    strategy.model.append(Net())
    save_checkpoint(strategy, tmp_path / "run")
    other = make(model=Net(nn.Linear(6, 6)))
    assert isinstance(load_checkpoint(other, tmp_path / "run")[0].model[2], Net)


def test_functions_without_a_name_and_generators_are_carried(tmp_path):
    def strategy():
        plugin = Call(before_update=lambda s: None)
        plugin.generator = torch.Generator().manual_seed(3)
        plugin.numbers = np.random.default_rng(3)
        return plugin, make(plugin)

    plugin, saved = strategy()
    torch.rand(4, generator=plugin.generator), plugin.numbers.random(3)
    save_checkpoint(saved, tmp_path / "run")
    other, loaded = strategy()
    load_checkpoint(loaded, tmp_path / "run")
    loaded.train(domain_stream().train_stream[0])
    for draw in (
        lambda p: float(torch.rand((), generator=p.generator)),
        lambda p: p.numbers.random(),
    ):
        assert draw(plugin) == draw(other)


def test_hooks_of_the_user_are_there_once_and_get_no_twin(tmp_path):
    strategy = make()
    strategy.model.register_forward_hook(print)
    save_checkpoint(strategy, tmp_path / "run")
    before = torch.utils.hooks.RemovableHandle.next_id
    torch.utils.hooks.RemovableHandle.next_id = 0  # as in a new process
    try:
        load_checkpoint(make(), tmp_path / "run")
        assert torch.utils.hooks.RemovableHandle.next_id == before
    finally:
        torch.utils.hooks.RemovableHandle.next_id = before


def test_loggers_go_on_where_they_write(tmp_path):
    def loggers(file):
        board = TensorboardLogger(tmp_path / "board")
        return [
            ScalarCSVLogger(tmp_path / "log.csv"),
            board,
            TextLogger(file),
            TextLogger(sys.stdout),
        ]

    with (tmp_path / "log.txt").open("w") as file:
        first = trained(metrics=[AccuracyMatrix()], loggers=loggers(file))
        first.evaluator.loggers += [InteractiveLogger(), CSVLogger(tmp_path / "accuracy")]
        first.eval(domain_stream().test_stream)
        save_checkpoint(first, tmp_path / "run")
        mine = loggers(io.StringIO())
        strategy = make(metrics=[AccuracyMatrix()], loggers=mine)
        load_checkpoint(strategy, tmp_path / "run")
        first.evaluator.loggers[-1].close()
    assert strategy.evaluator.loggers == mine
    # As texts: a score that is not known yet is NaN, which equals nothing.
    assert repr(strategy.evaluator.get_all_metrics()) == repr(first.evaluator.get_all_metrics())
    length = len((tmp_path / "log.csv").read_text().splitlines())
    strategy.train(domain_stream().train_stream[1])
    strategy.eval(domain_stream().test_stream)
    assert len((tmp_path / "log.csv").read_text().splitlines()) > length
    assert "Start of eval phase" in mine[2].file.getvalue()
    for board in (mine[1], first.evaluator.loggers[1]):
        board.writer.close()


# What is left out


@pytest.mark.parametrize("method", ["replay", "gdumb", "agem"])
def test_the_samples_of_a_benchmark_can_be_left_out(method, tmp_path):
    expected = Run(method).train().outcome()
    run = Run(method).train(0, 2, tmp_path / "whole")
    save_checkpoint(run.strategy, tmp_path / "small", benchmark=run.scenario)
    sizes = [(tmp_path / name).stat().st_size for name in ("small", "whole")]
    assert sizes[0] < sizes[1]
    again = Run(method, seed=3)
    start = again.load(tmp_path / "small", benchmark=again.scenario)
    assert again.train(start).outcome() == expected


def test_samples_that_are_not_the_same_are_refused(tmp_path):
    run = Run("replay").train(0, 1)
    save_checkpoint(run.strategy, tmp_path / "run", benchmark=run.scenario)
    again = Run("replay")
    state = parameter_vector(again.strategy.model)
    with pytest.raises(CheckpointError, match=r"benchmark: .* pass the same benchmark"):
        again.load(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"benchmark: .* with the same seed"):
        again.load(tmp_path / "run", benchmark=checkpoint_runs.permuted(1))
    assert torch.equal(parameter_vector(again.strategy.model), state)


class Augmented(Dataset):
    """Draws from a generator of its own for each sample, and keeps what it has read."""

    def __init__(self, seed):
        self.x = torch.randn(16, 6, generator=torch.Generator().manual_seed(seed))
        self.targets = [index % 6 for index in range(16)]
        self.numbers, self.read = np.random.default_rng(0), {}

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        self.read[index] = self.x[index]
        return self.x[index] + float(self.numbers.normal()), self.targets[index]


def test_data_sets_that_draw_for_themselves_are_not_read(tmp_path):
    def benchmark(seed):
        train = [as_classification_dataset(Augmented(seed + index)) for index in range(2)]
        return benchmark_from_datasets(train=train, test=train[:1])

    def strategy():
        torch.manual_seed(5)
        return make(strategy=Replay, mem_size=8)

    def run(save):
        made, data = strategy(), benchmark(0)
        with quiet_avalanche():
            for experience in data.train_stream:
                made.train(experience)
                if save:
                    save_checkpoint(made, tmp_path / "run", benchmark=data)
        return parameter_vector(made.model)

    assert torch.equal(run(save=True), run(save=False))
    assert load_checkpoint(strategy(), tmp_path / "run", benchmark=benchmark(0))[1] == 2
    with pytest.raises(CheckpointError, match="benchmark: its samples are not those"):
        load_checkpoint(strategy(), tmp_path / "run", benchmark=benchmark(3))


class Mirror(Dataset):
    """Holds itself, and no samples."""

    def __init__(self, data):
        self.dataset, self.data = self, data


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (["/here/a.png", "b"], ["/there/a.png", "b"], True),
        (["/here/a.png"], ["/here/b.png"], False),
        (list(range(5000)), list(range(5001)), False),
        ({"a": torch.zeros(2, 0)}, {"a": torch.zeros(3, 0)}, False),
        (torch.tensor(1), torch.tensor(2), False),
        (np.array([[object(), 1]]), np.array([[object(), 1]]), True),
        (np.zeros((9, 9), ">f4"), np.ones((9, 9), ">f4"), False),
        (torch.ones(9, 9).to_sparse(), torch.zeros(9, 9).to_sparse(), True),
        (torch.ones(1 << 20).bfloat16(), torch.ones(1 << 20).bfloat16(), True),
    ],
    ids=["folders", "names", "length", "empty", "number", "objects", "values", "sparse", "large"],
)
def test_data_sets_are_told_apart_by_what_they_hold(one, other, same):
    assert (fingerprint_of(Mirror(one)) == fingerprint_of(Mirror(other))) is same


# What is refused


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "run"
    save_checkpoint(make(MIGUPlugin(seed=0)), path)
    return path.read_bytes()


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """Check that a file is refused with nothing unpickled."""

    def unpickled(*arguments, **options):
        raise AssertionError("unpickled")

    monkeypatch.setattr(torch, "load", unpickled)
    monkeypatch.setattr(pickle, "loads", unpickled)

    def check(content, match, strategy=None):
        path = tmp_path / "run"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=match):
            load_checkpoint(strategy or make(MIGUPlugin(seed=0)), path)

    return check


def test_a_changed_byte_is_found(saved, tmp_path):
    path = tmp_path / "run"

    @given(st.integers(0, len(saved) - 1), st.integers(1, 255))
    def check(position, change):
        changed = bytearray(saved)
        changed[position] ^= change
        path.write_bytes(changed)
        assert not frame.is_whole(path)

    check()
    path.write_bytes(saved)
    assert frame.is_whole(path)


def test_a_file_cut_short_is_found(saved, tmp_path):
    path = tmp_path / "run"
    for length in [*range(frame.HEADER_SIZE + 2), *range(100, len(saved), 997), len(saved) - 1]:
        path.write_bytes(saved[:length])
        with pytest.raises(CheckpointError, match="cut short"), frame.open_frame(path):
            pass
    path.write_bytes(saved + b"0")
    assert not frame.is_whole(path)


def test_what_is_no_checkpoint_is_not_unpickled(saved, refused):
    tensors = io.BytesIO()
    torch.save({"a": torch.ones(3)}, tensors)
    refused(tensors.getvalue(), "run is no checkpoint of avalanche_mgem")
    refused(pickle.dumps([1, 2]), "is no checkpoint")
    refused(b"", "cut short")
    refused(saved[:-100], "cut short")
    refused(saved[:-1] + bytes([saved[-1] ^ 1]), "is damaged")
    later = saved[:16] + (2).to_bytes(4, "little") + saved[20:]
    refused(later, "format version 2, this avalanche_mgem reads version 1")


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="is a folder"):
        load_checkpoint(make(), tmp_path)
    with pytest.raises(CheckpointError, match="path must name a file"):
        save_checkpoint(make(), tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        save_checkpoint(make(), tmp_path / "not" / "there")


def test_a_slip_in_the_folder_does_not_begin_anew(tmp_path):
    for missing_ok in (True, False):
        with pytest.raises(FileNotFoundError, match=r"path: there is no folder .*wrong for run"):
            load_checkpoint(make(), tmp_path / "wrong" / "run", missing_ok=missing_ok)


class OtherMIGU(MIGUPlugin):
    """Another plugin."""


def adam(model):
    return torch.optim.Adam(model.parameters())


@pytest.mark.parametrize(
    ("other", "match"),
    [
        (lambda: make(MIGUPlugin(), strategy=Replay), "its strategy: .*Naive; .*Replay"),
        (make, "its plugins: .*MIGUPlugin, .*; the plugins of the strategy .*"),
        (lambda: make(OtherMIGU()), "its plugins: .*OtherMIGU"),
        (lambda: make(MIGUPlugin(), metrics=[AccuracyMatrix()]), "its metrics: none; .*Accuracy"),
        (lambda: make(MIGUPlugin(), optimizer=adam), "its optimizer: torch.optim.sgd.SGD; .*Adam"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(other, match, saved, refused):
    strategy = other()
    state = dict(vars(strategy))
    refused(saved, match, strategy)
    assert vars(strategy) == state


def test_what_has_changed_since_is_told(saved, tmp_path, monkeypatch):
    path = tmp_path / "run"
    path.write_bytes(saved)
    strategy = make(MIGUPlugin())
    strategy.train_epochs = 7
    with pytest.warns(UserWarning, match=r"the checkpoint's settings hold.*: train_epochs 1 -> 7"):
        load_checkpoint(strategy, path)
    assert strategy.train_epochs == 1
    monkeypatch.setattr(platform, "python_version", lambda: "2.7")
    with pytest.warns(UserWarning, match=r"saved by other versions: python 3\S+ -> 2.7"):
        load_checkpoint(make(MIGUPlugin()), path)


def test_other_arguments_of_plugins_are_told(tmp_path):
    path = tmp_path / "run"
    strategy = trained(MGEMPlugin(6, 0.5), MIGUPlugin(0.3), Holder((1, 2)), n=2)
    save_checkpoint(strategy, path)
    for same in (strategy, make(MGEMPlugin(6, 0.5), MIGUPlugin(0.3), Holder((1, 2)))):
        load_checkpoint(same, path)  # counters and seeds of one that has trained are no arguments
    other = MGEMPlugin(12, 0.9, restrict="update", memory_groups=2), MIGUPlugin(0.9, score="weight")
    with pytest.warns(UserWarning, match="the checkpoint's settings hold") as told:
        load_checkpoint(make(*other, Holder((1, 3))), path)
    assert set(str(told[-1].message).split("strategy's: ")[1].split(", plug")) == {
        "plugins[0].restrict 'gradient' -> 'update'",
        "ins[0].patterns_per_experience 6 -> 12",
        "ins[0].memory.groups 1 -> 2",
        "ins[0].memory_strength.value 0.5 -> 0.9",
        "ins[1].mask_fraction 0.3 -> 0.9",
        "ins[1].score 'output' -> 'weight'",
        "ins[2].held (1, 2) -> (1, 3)",
    }


class Passing(SupervisedPlugin):
    """Stands among the plugins for a moment."""

    transient = True


def test_a_plugin_of_a_moment_is_no_part_of_a_run(tmp_path):
    strategy = trained()
    strategy.plugins.append(Passing())
    plugins = list(strategy.plugins)
    save_checkpoint(strategy, tmp_path / "run")
    assert strategy.plugins == plugins
    for other in (strategy, make()):
        load_checkpoint(other, tmp_path / "run")
        assert [type(p) for p in other.plugins] == [type(p) for p in plugins[:-1]]


class Hooked(SupervisedPlugin):
    """Holds a hook that an error has left, and does not save it."""

    def __init__(self):
        super().__init__()
        self.hook = None

    def __getstate__(self):
        return {**vars(self), "hook": None}

    def release_hooks(self):
        if self.hook is not None:
            self.hook.remove()


def test_hooks_that_an_error_has_left_are_taken_off(tmp_path):
    plugin = Hooked()
    strategy = make(plugin)
    save_checkpoint(strategy, tmp_path / "run")
    plugin.hook = strategy.optimizer.register_step_pre_hook(print)
    others = plugin.hook.hooks_dict_ref()
    load_checkpoint(strategy, tmp_path / "run")
    assert not others


class Holder(SupervisedPlugin):
    """Holds what cannot be pickled."""

    def __init__(self, held):
        super().__init__()
        self.fine, self.held = [self], held


def begun():
    generator = (number for number in range(3))
    next(generator)
    return generator


def test_what_cannot_be_pickled_is_named(tmp_path):
    path = tmp_path / "run"
    save_checkpoint(make(Holder(None)), path)
    good = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"because of plugins\[0\]\.held \(Holder\): "):
        save_checkpoint(make(Holder(begun())), path)
    assert path.read_bytes() == good
    assert [each.name for each in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("space", [100, 1000, 4000])
def test_a_full_disk_is_told_as_that(space):
    class Full(io.BytesIO):
        def write(self, data):
            if self.tell() + memoryview(data).nbytes > space:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    strategy = make()
    surroundings = Surroundings(find_places(strategy), (), Samples(None))
    with pytest.raises(OSError, match="No space left") as found:
        frame.write_frame(Full(), {}, lambda sink: dump(strategy, sink, surroundings))
    assert found.value.errno == errno.ENOSPC


def test_a_started_agem_is_named_and_one_between_experiences_is_not(tmp_path):
    strategy = trained(strategy=AGEM, patterns_per_exp=4, sample_size=4)
    save_checkpoint(strategy, tmp_path / "run")
    next(strategy.plugins[0].buffer_dliter)
    with pytest.raises(CheckpointError, match=r"plugins\[0\]\.buffer_dliter \(AGEMPlugin\)"):
        save_checkpoint(strategy, tmp_path / "run")


def test_saving_is_for_between_experiences(tmp_path):
    save = Call(before_update=lambda strategy: save_checkpoint(strategy, tmp_path / "run"))
    with pytest.raises(RuntimeError, match="in the midst"):
        trained(save)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="Linear has no model, optimizer"):
        save_checkpoint(nn.Linear(1, 1), tmp_path / "run")
    with pytest.raises(ValueError, match="strategy must be one of Avalanche's"):
        load_checkpoint(nn.Linear(1, 1), tmp_path / "run")


class Fragile:
    """Fails to load."""

    def __setstate__(self, state):
        raise OSError("the data set is gone")


def test_a_strategy_that_fails_to_load_is_what_it_was(tmp_path):
    plugin = MGEMPlugin(8)
    strategy = trained(plugin, Holder(Fragile()), n=2)
    plugin.fragile = Fragile()
    strategy.plugins[1].held.x = 1
    save_checkpoint(strategy, tmp_path / "run")
    mine = MGEMPlugin(8)
    other = make(mine, Holder(None))
    parts = other, mine, other.model, other.model[0], other.clock
    states = [dict(vars(part)) for part in parts]
    random_state = fingerprint(CPU)
    with pytest.raises(CheckpointError, match="does not load here: OSError: the data set is gone"):
        load_checkpoint(other, tmp_path / "run")
    assert [
        vars(part) for part in (other, mine, other.model, other.model[0], other.clock)
    ] == states
    assert fingerprint(CPU) == random_state
    other.train(domain_stream().train_stream[0])


# What is kept


def test_the_one_before_is_kept_and_taken_when_the_newest_is_damaged(tmp_path):
    path = tmp_path / "run"
    strategy = trained()
    for experience in domain_stream().train_stream[1:]:
        save_checkpoint(strategy, path)
        strategy.train(experience)
    save_checkpoint(strategy, path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "run.previous"]
    assert load_checkpoint(make(), path)[1] == 3
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.warns(UserWarning, match=r"cut short: .*run\.previous"):
        strategy, start = load_checkpoint(make(), path)
    assert start == 2
    # The next one takes the place of the damaged one, which does not take that of the good one.
    with pytest.warns(UserWarning, match=r"no whole checkpoint; now at .*run\.damaged"):
        save_checkpoint(strategy, path)
    assert [checkpoint_runs.finished_at(tmp_path / name) for name in ("run", "run.previous")] == [
        2,
        2,
    ]
    path.unlink()
    with pytest.warns(UserWarning, match=r"there is no .*run \(to begin anew, remove"):
        assert load_checkpoint(make(), path)[1] == 2
    (tmp_path / "run.previous").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        load_checkpoint(make(), path)


def test_the_one_before_is_taken_when_the_newest_cannot_be_read(tmp_path, monkeypatch):
    path = tmp_path / "run"
    for n in (1, 2):
        save_checkpoint(trained(n=n), path)
    read = frame._read_start

    def fail(at, file):
        if at in broken:
            raise OSError(errno.EIO, "Input/output error")
        return read(at, file)

    monkeypatch.setattr(frame, "_read_start", fail)
    broken = {path}
    with pytest.warns(UserWarning, match=r"Input/output error; .*: .*run\.previous"):
        strategy, start = load_checkpoint(make(), path)
    assert start == 1
    with pytest.warns(UserWarning, match=r"now at .*run\.damaged"):
        save_checkpoint(strategy, path)
    broken.add(tmp_path / "run.previous")
    with pytest.raises(CheckpointError, match=r"no whole checkpoint: .*Input/output error"):
        load_checkpoint(make(), path)
    (tmp_path / "run.previous").unlink()
    with pytest.raises(OSError, match="Input/output error"):
        load_checkpoint(make(), path)


def test_without_links_the_one_before_is_kept_too(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError("no links on this file system")

    monkeypatch.setattr(os, "link", refuse)
    for n in (1, 2):
        save_checkpoint(trained(n=n), tmp_path / "run")
    names = ("run", "run.previous")
    assert [checkpoint_runs.finished_at(tmp_path / name) for name in names] == [2, 1]


def test_what_killed_processes_left_is_removed(tmp_path):
    code = "0" * 32
    others = [f".another.{code}.tmp", f".run.ckpt.{code}.tmp"]  # may be being written
    for name in (f".run.{code}.tmp", *others):
        (tmp_path / name).touch()
    save_checkpoint(make(), tmp_path / "run")
    assert sorted(p.name for p in tmp_path.iterdir()) == [*others, "run"]


def test_the_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    events, sync, replace = [], os.fsync, Path.replace

    def recorded_sync(descriptor):
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        sync(descriptor)

    def recorded_replace(self, target):
        events.append(target.name)
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", recorded_sync)
    monkeypatch.setattr(Path, "replace", recorded_replace)
    save_checkpoint(make(), tmp_path / "run")
    save_checkpoint(make(), tmp_path / "run")
    assert events == ["file", "run", "folder", "file", "run.previous", "run", "folder"]


# Devices, as far as can be seen without one


def test_devices_are_those_of_the_strategy():
    now = device_map("run", "cuda:1", torch.device("cpu"))
    assert [now(name) for name in ("cpu", "cuda:1", "cuda:0", "cuda")] == ["cpu"] * 4
    same = device_map("run", "cuda:0", torch.device("cuda:0"))
    assert [same(name) for name in ("cpu", "cuda:0", "cuda:1")] == ["cpu", "cuda:0", "cuda:1"]
    with pytest.raises(CheckpointError, match="make the strategy with device='cpu', got cuda"):
        device_map("run", "cpu", torch.device("cuda"))


def test_a_device_in_the_strategy_is_put_on_another():
    file = io.BytesIO()
    dump([torch.device("cuda:1"), torch.ones(2)], file, Surroundings({}, (), Samples(None)))
    file.seek(0)
    surroundings = Surroundings({}, (), Samples(None), device_map("run", "cuda:1", CPU))
    assert load(file, surroundings)[0] == CPU


def test_random_states_of_devices_that_are_gone_are_told():
    states = checkpoint_runs.random_states()
    states["cuda"] = [states["torch"]]
    states["registered"] = {"mine": 3}
    with pytest.warns(UserWarning, match="random states of cuda:0, mine, which are not here"):
        restore_random_states(states)
