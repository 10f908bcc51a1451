"""What a gate of rows did, as metrics, against counts by hand."""

import copy
import pickle

import numpy as np
import pytest
import torch
from avalanche.logging import TensorboardLogger
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import Call, domain_stream, make_model, make_strategy, parameter_vector, train

from avalanche_mgem import MIGUPlugin
from avalanche_mgem.evaluation import GatingMetric, ShowsMask, gating_metrics
from avalanche_mgem.model.layers import find_gated_layers
from avalanche_mgem.restriction.rows import UNSEEN, kept_rows, kept_rows_of_layers

WIDTHS = {"a": 8, "b": 8, "c": 5}


class Gate(SupervisedPlugin):
    """Shows scores that its own generator draws, and masks by them from an experience on."""

    def __init__(self, mask_fraction=0.6, masks_from=1, widths=lambda experience: WIDTHS):
        super().__init__()
        self.mask_fraction, self.masks_from, self.widths = mask_fraction, masks_from, widths
        self.last_mask = self.last_scores = None
        self.generator = torch.Generator().manual_seed(3)
        self.shown = []  # (experience, scores, mask)

    def before_update(self, strategy, **kwargs):
        task = strategy.experience.current_experience
        widths = self.widths(task)
        self.last_scores = {n: torch.rand(w, generator=self.generator) for n, w in widths.items()}
        self.last_mask = None
        if task >= self.masks_from:
            self.last_mask = {
                n: kept_rows(s, self.mask_fraction) for n, s in self.last_scores.items()
            }
        self.shown.append((task, copy.deepcopy(self.last_scores), copy.deepcopy(self.last_mask)))


class Keeper:
    """A logger that keeps everything that was emitted, by name."""

    def __init__(self):
        self.values = {}

    def log_metrics(self, values):
        for value in values:
            self.values.setdefault(value.name, []).append(value.value)

    def of(self, name, layer=""):
        return self.values.get(f"Gating_{name}/train_phase/train_stream{layer and '/' + layer}", [])


def run(plugins, metrics, loggers=None):
    keeper = Keeper()
    strategy = make_strategy(make_model(), plugins)
    evaluator = EvaluationPlugin(metrics, loggers=[keeper, *(loggers or [])])
    strategy.plugins[-1] = strategy.evaluator = evaluator
    train(strategy, domain_stream().train_stream)
    return keeper, strategy


def share_by_hand(shown):
    shares = []
    for _, scores, mask in shown:
        rows = sum(len(s) for s in scores.values())
        masked = 0 if mask is None else sum(int((~kept).sum()) for kept in mask.values())
        shares.append(masked / rows)
    return shares


def rows_by_hand(shown, task, mask_fraction):
    """The rows that an experience's mean scores keep, as sets."""
    seen = [scores for t, scores, _ in shown if t == task]
    means = {n: torch.stack([s[n].double() for s in seen]).mean(0) for n in seen[0]}
    return {
        n: set(kept_rows(m, mask_fraction).nonzero().flatten().tolist()) for n, m in means.items()
    }


def test_the_masked_share_is_that_of_the_masks():
    gate, metric = Gate(), GatingMetric(minibatch=True)
    keeper, _ = run([gate], metric)
    shares = share_by_hand(gate.shown)
    assert keeper.of("MaskedShare_MB") == shares
    expected = [np.mean(part) for part in np.split(np.array(shares), 3)]
    assert keeper.of("MaskedShare") == pytest.approx(expected)
    assert keeper.of("MaskedShare")[0] == 0.0  # the first masks nothing
    assert metric.result()["Gating_MaskedShare"] == pytest.approx(np.mean(shares))


@pytest.mark.parametrize("mask_fraction", [0.0, 0.3, 0.6])
def test_the_overlap_is_that_of_the_rows_that_mean_scores_keep(mask_fraction):
    gate, metric = Gate(mask_fraction), GatingMetric(heat_map=True)
    keeper, _ = run([gate], metric)
    rows = [rows_by_hand(gate.shown, task, mask_fraction) for task in range(3)]
    expected = np.eye(3)
    for t in range(3):
        for s in range(t):
            shares = {n: len(rows[t][n] & rows[s][n]) / len(rows[t][n]) for n in WIDTHS}
            expected[t, s] = expected[s, t] = np.mean(list(shares.values()))
            if s == t - 1:
                for name, share in shares.items():
                    assert keeper.of("Overlap", name)[s] == pytest.approx(share)
    np.testing.assert_allclose(metric.matrix(), expected)
    successive = [expected[1, 0], expected[2, 1]]
    assert keeper.of("Overlap") == pytest.approx(successive)
    assert metric.result()["Gating_Overlap"] == pytest.approx(np.mean(successive))
    pictures = keeper.of("OverlapMatrix")
    assert [isinstance(picture, Figure) for picture in pictures] == [True, True]
    assert (mask_fraction == 0) == (metric.result()["Gating_Overlap"] == 1)


def test_experts_have_rows_each():
    """Of scores [experts, n] each expert's rows are chosen, and all of them count."""
    shape = (3, 4)
    gate = Gate(0.5, widths=lambda task: {"a": 8})
    original = gate.before_update

    def of_experts(strategy, **kwargs):
        original(strategy)
        scores = torch.rand(shape, generator=gate.generator)
        scores[2] = UNSEEN if strategy.experience.current_experience == 1 else scores[2]
        gate.last_scores["e"] = scores
        if gate.last_mask is not None:
            gate.last_mask["e"] = kept_rows_of_layers({0: scores}, 0.5)[0]
        gate.shown[-1][1]["e"] = scores.clone()

    gate.before_update = of_experts
    keeper, _ = run([gate], GatingMetric())
    # 4 of 8; of each expert 2 of 4, and all of one that had no token.
    assert keeper.of("MaskedShare") == pytest.approx([0.0, (4 + 8) / 20, (4 + 6) / 20])
    rows = []
    for task in range(3):
        scores = torch.stack([s["e"] for t, s, _ in gate.shown if t == task]).mean(0)
        rows.append(kept_rows_of_layers({0: scores}, 0.5)[0])
    assert [int(r.sum()) for r in rows] == [6, 4, 6]
    for index in (1, 2):
        expected = int((rows[index] & rows[index - 1]).sum()) / int(rows[index].sum())
        assert keeper.of("Overlap", "e")[index - 1] == pytest.approx(expected)


def test_the_gated_share_is_that_of_the_account():
    migu = MIGUPlugin(0.5)
    keeper, strategy = run([migu], GatingMetric())
    shares = keeper.of("GatedShare")
    gated = sum(
        rows.parameter.numel() for layer in find_gated_layers(strategy.model) for rows in layer.rows
    )
    trainable = sum(p.numel() for p in strategy.model.parameters())
    assert shares == [gated / trainable] * 3


def test_without_a_heat_map_only_the_last_rows_are_remembered():
    metric = GatingMetric()
    run([Gate()], metric)
    assert len(metric._rows) == 1
    assert np.isnan(metric.matrix()[2, 0])
    assert not np.isnan(metric.matrix()[[1, 2], [0, 1]]).any()


def test_magnitudes_are_the_experiences_mean_scores():
    gate = Gate()
    keeper, _ = run([gate], GatingMetric())
    for name in WIDTHS:
        for task, emitted in enumerate(keeper.of("Magnitudes", name)):
            mean = torch.stack([s[name] for t, s, _ in gate.shown if t == task]).mean(0)
            torch.testing.assert_close(emitted, mean)


def test_layers_may_come_and_go_and_grow():
    widths = [{"a": 8, "b": 4}, {"a": 8, "b": 6, "c": 3}, {"c": 3, "d": 2}]
    gate, metric = Gate(widths=widths.__getitem__), GatingMetric(heat_map=True)
    keeper, _ = run([gate], metric)
    assert len(keeper.of("Overlap")) == 2
    assert [len(keeper.of("Overlap", name)) for name in "abcd"] == [1, 0, 1, 0]
    assert np.isnan(metric.matrix()[2, 0])  # nothing in common
    shares = share_by_hand(gate.shown)
    assert metric.result()["Gating_MaskedShare"] == pytest.approx(np.mean(shares))


def test_a_layer_that_is_called_now_and_then_has_the_mean_of_its_own_iterations():
    class Rare(Gate):
        def before_update(self, strategy, **kwargs):
            super().before_update(strategy, **kwargs)
            if len(self.shown) % 2:
                del self.last_scores["c"], self.shown[-1][1]["c"]

    gate = Rare(masks_from=9)
    keeper, _ = run([gate], GatingMetric())
    seen = [scores["c"] for t, scores, _ in gate.shown if t == 0 and "c" in scores]
    assert 0 < len(seen) < sum(t == 0 for t, _, _ in gate.shown)
    torch.testing.assert_close(keeper.of("Magnitudes", "c")[0], torch.stack(seen).mean(0))


def test_scores_that_are_nan_end_no_run():
    class Diverged(Gate):
        def before_update(self, strategy, **kwargs):
            super().before_update(strategy, **kwargs)
            self.last_scores["a"][0] = float("nan")

    keeper, _ = run([Diverged(masks_from=9)], GatingMetric())
    assert len(keeper.of("Overlap")) == 2
    assert keeper.of("Overlap", "a") == []


def test_nothing_is_emitted_where_nothing_shows_a_mask():
    (metric,) = gating_metrics()
    keeper, _ = run([], metric)
    assert keeper.values == {}
    assert metric.result() == {}
    assert isinstance(Gate(), ShowsMask)


def test_a_gate_without_scores_masks_a_share_of_nothing():
    gate = Gate(widths=lambda experience: {})
    metric = GatingMetric(minibatch=True)
    run([gate], metric)
    assert metric.result() == {"Gating_MaskedShare": 0.0}


def test_training_and_the_random_state_are_as_without():
    states = []
    for metrics in ([], gating_metrics(minibatch=True, heat_map=True)):
        _, strategy = run([Gate()], metrics)
        states.append((parameter_vector(strategy.model), torch.get_rng_state()))
    assert torch.equal(states[0][0], states[1][0])
    assert torch.equal(states[0][1], states[1][1])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_goes_on_from_where_it_was_made(copied):
    copies = []

    def note(strategy):
        if strategy.experience.current_experience == 1:
            copies.append(copied(metric))

    gate, metric = Gate(), GatingMetric(heat_map=True)
    run([gate, Call(before_training_exp=note)], metric)
    other = copies[0]
    run([Gate(masks_from=0)], other)
    assert other.matrix().shape == (4, 4)
    metric.reset()
    assert metric.result() == {}
    assert metric.matrix().shape == (0, 0)


def test_tensorboard_shows_all_of_it(tmp_path):
    metrics = gating_metrics(minibatch=True, heat_map=True)
    logger = TensorboardLogger(tmp_path)
    run([Gate()], metrics, [logger])
    logger.writer.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    tags, phase = events.Tags(), "train_phase/train_stream"
    names = {f"Gating_{n}/{phase}" for n in ("MaskedShare_MB", "MaskedShare", "Overlap")}
    assert set(tags["scalars"]) == names | {f"Gating_Overlap/{phase}/{layer}" for layer in WIDTHS}
    assert set(tags["histograms"]) == {f"Gating_Magnitudes/{phase}/{layer}" for layer in WIDTHS}
    assert tags["images"] == [f"Gating_OverlapMatrix/{phase}"]
    values = [event.value for event in events.Scalars(f"Gating_Overlap/{phase}")]
    mean = metrics[0].result()["Gating_Overlap"]
    assert np.mean(values) == pytest.approx(mean)
