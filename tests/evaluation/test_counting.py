"""What is an answer, and what is refused before it spoils a run."""

import math

import numpy as np
import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from tiny import Call
from torch import nn
from torch.nn.functional import cross_entropy, one_hot
from torch.utils.data import TensorDataset

from avalanche_mgem.evaluation import AccuracyMatrix, accuracy_matrix_metrics
from avalanche_mgem.evaluation.counting import RunningAccuracy


class Returns(nn.Module):
    """A model of features [N, 6, ...] whose output is what a function makes of its scores."""

    def __init__(self, function=lambda scores: scores):
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.function = function

    def forward(self, x):
        scores = self.layer(x.movedim(1, -1)).movedim(-1, 1)  # [N, C, ...]
        return self.function(scores)


def naive(model, metric, criterion, plugins=()):
    return Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), 0.1),
        criterion=criterion,
        train_mb_size=8,
        eval_mb_size=5,
        plugins=list(plugins),
        evaluator=EvaluationPlugin(metric),
    )


def stream_of(x, y):
    data = AvalancheDataset([TensorDataset(x, y)])
    return benchmark_from_datasets(train=[data], test=[data])


def features(*rest, n=16):
    return torch.randn(n, 6, *rest, generator=torch.Generator().manual_seed(0))


def classes(*shape, high=3):
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(1))


def anything(output, targets):
    """A criterion for any output and any targets."""
    while not isinstance(output, torch.Tensor):
        output = next(iter(output.values() if isinstance(output, dict) else output))
    return output.float().square().mean()


UNCOUNTABLE = {
    "regression [N]": (torch.rand(16), lambda s: s[:, 0]),
    "regression [N, 1]": (torch.rand(16, 1), lambda s: s[:, :1]),
    "regression of two": (torch.rand(16, 2), lambda s: s[:, :2]),
    "class and one number [N]": (classes(16, high=2), lambda s: s[:, 0]),
    "class and one number [N, 1]": (classes(16, high=2), lambda s: s[:, :1]),
    "column of classes": (classes(16, 1), lambda s: s),
    "multi-label": (classes(16, 3, high=2), lambda s: s),
    "multi-label of floats": (classes(16, 3, high=2).float(), lambda s: s),
    "truth values": (classes(16, high=2).bool(), lambda s: s),
    "scores in a dict": (classes(16), lambda s: {"out": s}),
    "pixels of another size": (classes(16, 4, 4), lambda s: s[..., :2, :2]),
    "pixels and one number": (classes(16, 4, 4), lambda s: s[:, 0]),
    "pixels and one channel": (classes(16, 4, 4), lambda s: s[:, :1]),
    "tokens, classes last": (classes(16, 4), lambda s: s.movedim(1, -1)),
}


@pytest.mark.parametrize("case", UNCOUNTABLE)
def test_what_cannot_be_counted_is_refused_before_the_first_step(case):
    y, function = UNCOUNTABLE[case]
    rest = {"pixels": (4, 4), "tokens": (4,)}.get(case.split()[0].rstrip(","), ())
    stream = stream_of(features(*rest), y)
    model = Returns(function)
    before = [p.clone() for p in model.parameters()]
    strategy = naive(model, AccuracyMatrix(), anything)
    with pytest.raises(ValueError, match=r"^AccuracyMatrix counts classes.*Got targets .*\[8"):
        strategy.train(stream.train_stream[0])
    assert all(map(torch.equal, before, model.parameters()))
    with pytest.raises(ValueError, match=r"^AccuracyMatrix counts classes.*Got targets .*\[5"):
        strategy.eval(stream.test_stream)


@pytest.mark.parametrize(
    "function",
    [lambda s: (s, s), lambda s: [s, s], lambda s: s.to_sparse()],
    ids=["tuple", "list", "sparse"],
)
def test_what_training_may_do_alone_is_refused_in_the_first_evaluation(function):
    stream = stream_of(features(), classes(16))
    strategy = naive(
        Returns(function), AccuracyMatrix(), lambda *_: torch.zeros(1).requires_grad_()
    )
    strategy.train(stream.train_stream[0])
    with pytest.raises(ValueError, match=r"AccuracyMatrix counts classes.*is no tensor of scores"):
        strategy.eval(stream.test_stream)


def test_a_strategy_may_train_on_what_it_does_not_evaluate():
    stream = stream_of(features(), classes(16))

    class TwoOutputs(nn.Linear):
        def forward(self, x):
            scores = super().forward(x)
            return (scores, scores) if self.training else scores

    def soft(strategy):
        strategy.mbatch[1] = one_hot(strategy.mbatch[1], 3).float()

    def views(strategy):
        strategy.mbatch[0] = torch.cat([strategy.mb_x, strategy.mb_x])

    metric = AccuracyMatrix()
    for model, criterion, plugin in (
        (TwoOutputs(6, 3), anything, Call()),
        (nn.Linear(6, 3), nn.CrossEntropyLoss(), Call(before_forward=soft)),
        (nn.Linear(6, 3), anything, Call(before_forward=views)),
    ):
        strategy = naive(model, metric, criterion, [plugin])
        strategy.train(stream.train_stream[0])
        strategy.eval(stream.test_stream)
        right = model.eval()(features()).argmax(1) == classes(16)
        assert metric.result()[0, 0] == pytest.approx(right.float().mean().item())
        metric.reset()


def test_the_look_at_a_sample_draws_no_random_number():
    class Noisy(TensorDataset):
        def __getitem__(self, index):
            x, y = super().__getitem__(index)
            return x + 0 * torch.rand(6), y

    data = AvalancheDataset([Noisy(features(), classes(16))])
    stream = benchmark_from_datasets(train=[data], test=[data])

    def soft(strategy):
        strategy.mbatch[1] = one_hot(strategy.mbatch[1], 3).float()

    states = []
    for metrics in ([], accuracy_matrix_metrics()):
        torch.manual_seed(0)
        plugins = [Call(before_forward=soft)]
        strategy = naive(nn.Linear(6, 3), metrics, nn.CrossEntropyLoss(), plugins)
        strategy.train(stream.train_stream[0])
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


LAYOUTS = {
    "samples": ((), {}),
    "tokens": ((4,), {}),
    "pixels": ((4, 5), {}),
    "voxels": ((2, 3, 2), {}),
    "samples, classes last": ((), {"class_dim": -1}),
    "tokens, classes last": ((4,), {"class_dim": -1}),
    "pixels, classes last": ((4, 5), {"class_dim": -1}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_elements_are_counted_one_by_one(layout, dtype):
    rest, arguments = LAYOUTS[layout]
    last = "class_dim" in arguments
    y = classes(16, *rest)
    stream = stream_of(features(*rest), y.to(dtype))
    model = Returns(lambda s: s.movedim(1, -1) if last else s)

    def criterion(output, targets):
        return cross_entropy(output.movedim(-1, 1) if last else output, targets.long())

    metric = AccuracyMatrix(**arguments)
    strategy = naive(model, metric, criterion)
    strategy.train(stream.train_stream[0])
    strategy.eval(stream.test_stream)
    answers = model(features(*rest)).argmax(-1 if last else 1)
    hits = [int(a) == int(b) for a, b in zip(answers.flatten(), y.flatten(), strict=True)]
    assert metric.result()[0, 0] == pytest.approx(sum(hits) / len(hits))


@pytest.mark.parametrize("rest", [(), (4,), (3, 5)])
@pytest.mark.parametrize(
    ("ignored", "arguments", "criterion"),
    [
        (-100, {}, nn.CrossEntropyLoss()),
        (1, {}, nn.CrossEntropyLoss(ignore_index=1)),
        (255, {}, nn.CrossEntropyLoss(ignore_index=255)),
        (-1, {"ignore_index": -1}, lambda o, y: cross_entropy(o, y, ignore_index=-1)),
        (2, {"ignore_index": 2}, nn.CrossEntropyLoss()),
    ],
)
def test_ignored_targets_are_not_counted(rest, ignored, arguments, criterion):
    y = classes(16, *rest)
    y[:6] = ignored  # the first minibatch of evaluation is ignored as a whole
    model, metric = Returns(), AccuracyMatrix(**arguments)
    stream = stream_of(features(*rest), y)
    strategy = naive(model, metric, criterion)
    strategy.train(stream.train_stream[0])
    strategy.eval(stream.test_stream)
    kept = y != ignored
    right = model(features(*rest)).argmax(1)[kept] == y[kept]
    assert metric.result()[0, 0] == pytest.approx(right.double().mean().item())


def test_nothing_but_ignored_targets_have_no_accuracy():
    stream = stream_of(features(), torch.full((16,), -100))
    metric = AccuracyMatrix()
    values = naive(nn.Linear(6, 3), metric, nn.CrossEntropyLoss()).eval(stream.test_stream)
    assert math.isnan(values["ACC/eval_phase/test_stream"])
    assert np.isnan(metric.baseline()).all()


def test_a_negative_class_is_refused_with_what_would_be_right():
    stream = stream_of(features(), torch.full((16,), -1))
    strategy = naive(nn.Linear(6, 3), AccuracyMatrix(), anything)
    with pytest.raises(ValueError, match=r"targets hold -1, .* pass ignore_index"):
        strategy.eval(stream.test_stream)


def test_what_is_ignored_is_no_class_in_other_words():
    """-100 as uint8 would be 156."""

    class Loss(nn.Module):
        ignore_index = -100

        def forward(self, output, targets):
            return nn.functional.cross_entropy(output, targets.long())

    y = torch.full((16,), 156, dtype=torch.uint8)
    strategy = naive(nn.Linear(6, 200), metric := AccuracyMatrix(), Loss())
    strategy.eval(stream_of(features(), y).test_stream)
    assert np.isfinite(metric.baseline()).all()


@pytest.mark.parametrize("given", [None, 1, -1])
@pytest.mark.parametrize("criterion", [anything, nn.CrossEntropyLoss()])
def test_as_many_tokens_as_classes_need_to_be_told_which_is_which(given, criterion):
    """[N, 3, 3] with targets [N, 3]: only the criterion or the argument can tell."""
    y = classes(16, 3)
    stream = stream_of(features(3), y)
    model, metric = Returns(), AccuracyMatrix(class_dim=given)
    strategy = naive(model, metric, criterion)
    if given is None and criterion is anything:
        with pytest.raises(ValueError, match="dimension 1 or -1 of the output, pass class_dim"):
            strategy.train(stream.train_stream[0])
        return
    strategy.eval(stream.test_stream)
    answers = model(features(3)).argmax(-1 if given == -1 else 1)
    assert metric.baseline()[0] == pytest.approx((answers == y).float().mean().item())


def test_sizes_that_told_once_are_believed_later():
    """Texts of different lengths: one happens to have as many tokens as there are classes."""
    metric, model = AccuracyMatrix(), Returns()
    for length in (5, 3):
        stream = stream_of(features(length), classes(16, length))
        naive(model, metric, anything).eval(stream.test_stream)
        answers = model(features(length)).argmax(1)
        expected = (answers == classes(16, length)).float().mean().item()
        assert metric.baseline()[0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"class_dim": 0}, "class_dim must be 1, -1 or None, got 0"),
        ({"class_dim": True}, "class_dim must be a whole number .* got True"),
        ({"class_dim": "last"}, "class_dim must be a whole number .* got 'last'"),
        ({"ignore_index": 1.0}, "ignore_index must be a whole number .* got 1.0"),
        ({"ignore_index": "pad"}, "ignore_index must be a whole number .* got 'pad'"),
    ],
)
def test_arguments_are_looked_at(arguments, told):
    with pytest.raises(ValueError, match=told):
        AccuracyMatrix(**arguments)
    with pytest.raises(ValueError, match=told):
        accuracy_matrix_metrics(**arguments)


@pytest.mark.parametrize("own", [{0, 2}, {1}, {0, 1, 2, 3, 4}, {3, 9}, {7, 9}])
@pytest.mark.parametrize("rest", [(), (4,)])
def test_masked_answers_are_the_best_of_the_own_classes(own, rest):
    scores = torch.randn(20, 5, *rest, generator=torch.Generator().manual_seed(2))
    y = classes(20, *rest, high=5)
    running = RunningAccuracy(frozenset(own))
    running.update(scores, y, class_dim=1, ignore_index=None)
    hits = []
    for place in np.ndindex(*y.shape):
        row = scores[(place[0], slice(None), *place[1:])].tolist()
        known = [c for c in own if c < 5]
        best = max(known, key=row.__getitem__) if known else None
        hits.append(best == int(y[place]))
    assert running.masked == pytest.approx(sum(hits) / len(hits))
