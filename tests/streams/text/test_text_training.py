"""Text streams under Avalanche's own strategies, and batches of similar length."""

import io

import pytest
import torch
from avalanche.benchmarks.utils.data_loader import ReplayDataLoader
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import TextLogger
from avalanche.training import supervised
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin, SupervisedPlugin
from avalanche.training.storage_policy import ClassBalancedBuffer
from hypothesis import given
from hypothesis import strategies as st
from text_cases import TextHeads, TextModel, WordTokenizer, make_task
from tiny import make_strategy
from torch import nn
from torch.utils.data import DataLoader

from avalanche_mgem import MGEM, MGEMPlugin
from avalanche_mgem.streams import permuted_stream
from avalanche_mgem.streams.text import LengthBatchSampler, LengthBuckets, TextBatch, text_stream
from avalanche_mgem.streams.text.batches import padded_share
from avalanche_mgem.streams.text.lengths import lengths_of

WORDS = {"a": ("red", "green", "blue"), "b": ("cat", "dog", "cow"), "c": ("sun", "moon", "sky")}
BASELINES = {
    "Naive": {},
    "Replay": {"mem_size": 12},
    "EWC": {"ewc_lambda": 1.0},
    "SynapticIntelligence": {"si_lambda": 1.0},
    "MAS": {},
    "LwF": {"alpha": 1.0, "temperature": 2.0},
    "AGEM": {"patterns_per_exp": 6, "sample_size": 6},
    "GDumb": {"mem_size": 12},
    "Cumulative": {},
    "JointTraining": {},
}


def make_stream(task_labels=True, n_train=30):
    tasks = [make_task(name, words, n_train=n_train) for name, words in WORDS.items()]
    return text_stream(tasks, tokenizer=WordTokenizer(), task_labels=task_labels)


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=0.05)


def test_a_plain_loop_learns():
    torch.manual_seed(0)
    data = make_stream().train_stream[0].dataset
    model = TextModel()
    optimizer = adam(model)
    for _ in range(20):
        for batch in DataLoader(data, batch_size=8, shuffle=True, collate_fn=data.collate_fn):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch[0]), batch["labels"]).backward()
            optimizer.step()
    (batch,) = DataLoader(data, batch_size=len(data), collate_fn=data.collate_fn)
    assert bool((model(batch[0]).argmax(1) == batch["labels"]).all())


@pytest.mark.cover
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")
@pytest.mark.parametrize("baseline", list(BASELINES))
@pytest.mark.parametrize("task_labels", [True, False])
def test_avalanches_strategies_train_and_evaluate(baseline, task_labels):
    stream = make_stream(task_labels)
    torch.manual_seed(0)
    model = TextHeads() if task_labels else TextModel(n_classes=9)
    strategy = getattr(supervised, baseline)(
        model=model,
        optimizer=adam(model),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=8,
        eval_mb_size=8,
        train_epochs=2,
        evaluator=EvaluationPlugin(
            accuracy_metrics(experience=True), loggers=[TextLogger(io.StringIO())]
        ),
        **BASELINES[baseline],
    )
    whole = baseline == "JointTraining"
    for experience in [stream.train_stream] if whole else stream.train_stream:
        strategy.train(experience)
    accuracies = list(strategy.eval(stream.test_stream).values())
    assert len(accuracies) == 3
    assert all(0 <= float(accuracy) <= 1 for accuracy in accuracies)


def test_a_head_for_each_task_is_learned_with_replay():
    stream = make_stream()
    torch.manual_seed(0)
    seen = Watch()
    plugins = [ReplayPlugin(mem_size=30, storage_policy=ClassBalancedBuffer(30)), seen]
    strategy = make_strategy(TextHeads(), plugins, optimizer=adam, train_epochs=6)
    for experience in stream.train_stream:
        strategy.train(experience)
    assert max(len(set(tasks.tolist())) for tasks in seen.tasks) == 3
    strategy.model.eval()
    for experience in stream.test_stream:
        data = experience.dataset
        (batch,) = DataLoader(data, batch_size=len(data), collate_fn=data.collate_fn)
        right = strategy.model(batch[0], batch[-1]).argmax(1) == batch["labels"]
        assert float(right.float().mean()) > 0.9


def test_our_memory_takes_text():
    stream = make_stream()
    torch.manual_seed(0)
    model = TextHeads()
    strategy = MGEM(
        model=model,
        optimizer=adam(model),
        criterion=nn.CrossEntropyLoss(),
        patterns_per_experience=6,
        memory_groups=2,
        train_mb_size=8,
        evaluator=EvaluationPlugin(),
    )
    for experience in stream.train_stream:
        strategy.train(experience)
    plugin = next(each for each in strategy.plugins if isinstance(each, MGEMPlugin))
    assert plugin.last_projection is not None
    assert len(plugin.memory.closed_groups()) == 6
    assert all(isinstance(group.batch, TextBatch) for group in plugin.memory.closed_groups())


class Watch(SupervisedPlugin):
    """Notes the batches of a training."""

    def __init__(self):
        super().__init__()
        self.batches, self.tasks, self.loaders = [], [], []

    def before_training_iteration(self, strategy, **kwargs):
        self.batches.append(strategy.mbatch)
        self.tasks.append(strategy.mbatch["task_labels"])
        self.loaders.append(strategy.dataloader)


@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=60),
    batch_size=st.integers(1, 9),
    window=st.integers(1, 5),
    drop_last=st.booleans(),
)
def test_each_sample_comes_once_in_batches_of_the_size(lengths, batch_size, window, drop_last):
    sampler = LengthBatchSampler(lengths, batch_size, window=window, drop_last=drop_last)
    for _ in range(2):
        batches = list(sampler)
        assert len(batches) == len(sampler)
        flat = [i for batch in batches for i in batch]
        assert len(set(flat)) == len(flat)
        sizes = sorted(map(len, batches))
        rest = len(lengths) % batch_size
        if rest and not drop_last:
            assert sizes.pop(0) == rest
            assert sorted(flat) == list(range(len(lengths)))
        assert set(sizes) <= {batch_size}


def test_orders_are_of_the_seed_and_differ_between_epochs():
    lengths = [i * 7 % 23 for i in range(100)]
    before = torch.get_rng_state()
    first, second = (LengthBatchSampler(lengths, 8, seed=1) for _ in range(2))
    epochs = [list(first) for _ in range(2)]
    assert epochs == [list(second) for _ in range(2)]
    assert epochs[0] != epochs[1]
    assert list(LengthBatchSampler(lengths, 8, seed=2)) != epochs[0]
    assert torch.equal(torch.get_rng_state(), before)


def test_no_length_is_always_left_out():
    lengths = list(range(1, 30))
    sampler = LengthBatchSampler(lengths, 8, drop_last=True)
    left_out = [set(range(29)) - {i for batch in sampler for i in batch} for _ in range(20)]
    assert all(len(rows) == 29 % 8 for rows in left_out)
    assert len(set.union(*left_out)) > 15


def test_sorted_windows_need_the_least_padding():
    lengths = [i * 7 % 23 + 1 for i in range(96)]

    def padding(window):
        batches = list(LengthBatchSampler(lengths, 8, window=window))
        widths = [max(lengths[i] for i in batch) * len(batch) for batch in batches]
        return sum(widths) - sum(lengths)

    one, whole = padding(1), padding(12)
    ordered = sorted(lengths)
    best = sum(max(ordered[i : i + 8]) * 8 for i in range(0, 96, 8)) - sum(lengths)
    assert whole == best < one / 3


@pytest.mark.parametrize("replay", [False, True])
def test_a_strategy_trains_on_batches_of_similar_length(replay):
    shares, batches = {}, {}
    for bucketed in (False, True):
        torch.manual_seed(0)
        watch = Watch()
        plugins = [LengthBuckets()] if bucketed else []
        plugins += [ReplayPlugin(mem_size=60, batch_size_mem=4)] if replay else []
        strategy = make_strategy(TextHeads(), [*plugins, watch], optimizer=adam, train_epochs=2)
        for experience in make_stream(n_train=60).train_stream:
            strategy.train(experience)
        shares[bucketed] = padded_share(watch.batches)
        batches[bucketed] = watch.batches
    sizes = {key: sorted(len(batch[1]) for batch in held) for key, held in batches.items()}
    assert sizes[True] == sizes[False]
    assert shares[True] < shares[False] * (0.8 if replay else 0.5)
    for held in batches.values():
        current = torch.cat([batch["task_labels"] for batch in held[-16:]])
        assert int((current == 2).sum()) == 2 * 60  # each epoch has each sample of the last task
        assert bool((current < 2).any()) == replay


def _trained(seed):
    """The batches and the last loader of a training of two experiences."""
    torch.manual_seed(0)
    watch = Watch()
    strategy = make_strategy(TextModel(9), [LengthBuckets(seed=seed), watch], optimizer=adam)
    for _ in range(2):
        strategy.train(make_stream(task_labels=False).train_stream[0])
    return [batch["input_ids"].tolist() for batch in watch.batches], watch.loaders[-1]


def test_buckets_are_drawn_from_their_seed_for_each_experience_anew():
    first, again, other = (_trained(seed)[0] for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert first[:4] != first[4:]


def test_buckets_take_nothing_from_the_random_state():
    _, loader = _trained(0)
    before = torch.get_rng_state()
    assert len(list(loader)) == 4
    assert torch.equal(torch.get_rng_state(), before)


def test_buckets_take_replays_loader_as_it_is():
    watch = Watch()
    plugins = [LengthBuckets(), ReplayPlugin(mem_size=6), watch]
    strategy = make_strategy(TextHeads(), plugins, optimizer=adam)
    for experience in make_stream().train_stream[:2]:
        strategy.train(experience)
    assert isinstance(watch.loaders[-1]._replaced, ReplayDataLoader)
    assert len(watch.loaders[-1]) == 4


def test_buckets_are_for_text(digits):
    stream = permuted_stream(digits, n_experiences=1, train_per_experience=20)
    strategy = make_strategy(nn.Flatten(), [LengthBuckets()], optimizer=lambda _: None)
    data = stream.train_stream[0].dataset
    with pytest.raises(ValueError, match="data sets of text streams only"):
        lengths_of(data)
    strategy.dataloader = DataLoader(data)
    with pytest.raises(ValueError, match="LengthBuckets needs a loader of Avalanche's, got DataL"):
        LengthBuckets().before_training_epoch(strategy)
