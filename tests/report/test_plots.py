import os

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import same_color

from avalanche_mgem.report.figures.accuracy import (
    accuracy_figure,
    plot_accuracy,
    plot_tradeoff,
    tradeoff_figure,
)
from avalanche_mgem.report.figures.canvas import png
from avalanche_mgem.results.result import RunResult
from avalanche_mgem.results.statistics import mean_interval

METHODS = [
    *["naive", "replay", "ewc", "agem", "gem", "mgem-p", "mgem-d", "mgem-pd"],
    *["mgem-p-approx", "mgem-d-approx", "mgem-pd-approx"],
]
FIGURES = [accuracy_figure, tradeoff_figure]
PNG = b"\x89PNG\r\n\x1a\n"


def make(method="gem", seed=0, size=4, **fields):
    random = np.random.default_rng([seed, size, len(method), *method.encode()])
    accuracy = np.tril(random.uniform(0.5, 0.9, (size, size)))
    accuracy[np.triu_indices(size, 1)] = np.nan
    values = {"accuracy": accuracy, "stream": "rotations", "seconds": 1.0, **fields}
    return RunResult(method=method, seed=seed, baseline=np.full(size, 0.1), **values)


def make_many(methods=METHODS, seeds=3, size=4):
    return [make(method, seed, size) for method in methods for seed in range(seeds)]


def lines(figure):
    return {line.get_label(): line for line in figure.axes[0].lines}


def legend_texts(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def all_texts(figure):
    return "\n".join(text.get_text() for text in figure.axes[0].texts)


def pixels(figure):
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba()).copy()


def test_curve_is_the_mean_over_seeds_of_the_accuracy_on_what_was_seen():
    results = make_many(["gem", "ewc"])
    for method in ("gem", "ewc"):
        line = lines(accuracy_figure(results))[method]
        runs = [run.accuracy for run in results if run.method == method]
        expected = np.mean([[np.nanmean(R[t]) for t in range(4)] for R in runs], axis=0)
        np.testing.assert_allclose(line.get_ydata(), expected)
        np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3, 4])


def test_band_reaches_as_far_as_the_interval():
    results = make_many(["gem"])
    band = accuracy_figure(results).axes[0].collections[0].get_paths()[0].vertices
    mean, half_width = mean_interval([run.scores["acc"] for run in results])
    at_the_end = band[band[:, 0] == 4, 1]
    assert at_the_end.min() == pytest.approx(mean - half_width)
    assert at_the_end.max() == pytest.approx(mean + half_width)


def test_points_are_means_and_bars_are_intervals():
    results = make_many(["gem"])
    figure = tradeoff_figure(results)
    point = lines(figure)["gem"]
    la, bwt = (mean_interval([run.scores[name] for run in results]) for name in ("la", "bwt"))
    np.testing.assert_allclose(point.get_xydata(), [[la[0], bwt[0]]])
    across, up = (bars.get_segments()[0] for bars in figure.axes[0].collections)
    np.testing.assert_allclose(across[:, 0], [la[0] - la[1], la[0] + la[1]])
    np.testing.assert_allclose(up[:, 1], [bwt[0] - bwt[1], bwt[0] + bwt[1]])


def test_no_method_lies_beyond_the_front():
    figure = tradeoff_figure(make_many(seeds=1))
    front = lines(figure)["Pareto front of the means"]
    assert front.get_drawstyle() == "steps-pre"
    stairs = front.get_xydata()
    for method in METHODS:
        x, y = lines(figure)[method].get_xydata()[0]
        to_the_right = stairs[stairs[:, 0] >= x]
        assert len(to_the_right) > 0
        assert to_the_right[0, 1] >= y


@pytest.mark.parametrize("draw", FIGURES)
def test_order_of_the_runs_of_a_method_does_not_matter(draw):
    results = make_many(["gem", "ewc"])
    mixed = [results[i] for i in (2, 4, 0, 5, 1, 3)]
    np.testing.assert_array_equal(pixels(draw(results)), pixels(draw(mixed)))


@pytest.mark.parametrize("draw", FIGURES)
def test_every_method_is_in_the_legend_and_looks_like_no_other(draw):
    figure = draw(make_many())
    assert legend_texts(figure)[: len(METHODS)] == METHODS
    drawn = [lines(figure)[method] for method in METHODS]
    assert len({line.get_marker() for line in drawn}) == len(METHODS)
    assert len({line.get_color() for line in drawn}) == len(METHODS)


def test_a_method_looks_the_same_in_both_figures():
    curves, points = (lines(draw(make_many())) for draw in FIGURES)
    for method in METHODS:
        assert curves[method].get_marker() == points[method].get_marker()
        assert same_color(curves[method].get_color(), points[method].get_color())


@pytest.mark.parametrize("spread", [0.3, 0.01, 0.0])
def test_names_overlap_neither_each_other_nor_the_frame(spread):
    random = np.random.default_rng(1)
    results = []
    for method in METHODS:
        matrix = np.full((3, 3), 0.6) + spread * random.uniform(-1, 1, (3, 3))
        results.append(make(method, size=3, accuracy=matrix))
    figure = tradeoff_figure(results)
    axes = figure.axes[0]
    figure.draw_without_rendering()
    boxes = [super(type(text), text).get_window_extent() for text in axes.texts]
    for i, box in enumerate(boxes):
        assert box.count_overlaps(boxes[:i]) == 0
        assert axes.bbox.padded(1).count_overlaps([box]) == 1
    if spread == 0.3:
        assert {text.get_text() for text in axes.texts} == set(METHODS)


@pytest.mark.parametrize("draw", FIGURES)
def test_one_seed_has_no_intervals_and_says_so(draw):
    figure = draw(make_many(["gem", "ewc"], seeds=1))
    pixels(figure)
    assert "no intervals" in figure.legends[0].get_title().get_text()


def test_one_experience():
    curves = accuracy_figure(make_many(size=1))
    pixels(curves)
    assert [tick for tick in curves.axes[0].get_xticks() if 0.5 < tick < 1.5] == [1]
    assert "two experiences" in all_texts(tradeoff_figure(make_many(size=1)))


def test_what_was_not_measured_is_not_drawn_and_said():
    lost = make("ewc", accuracy=np.full((4, 4), np.nan))
    figure = tradeoff_figure([make("gem"), lost])
    assert legend_texts(figure)[:2] == ["gem", "ewc (not measured)"]
    assert all_texts(figure) == "gem"
    curves = accuracy_figure([make("gem"), lost])
    pixels(curves)
    assert np.isnan(lines(curves)["ewc (not measured)"].get_ydata()).all()


def test_seeds_that_diverged_are_left_out_and_said():
    cut = np.array(make("ewc").accuracy)
    cut[2:] = np.nan
    good, lost = make("gem"), make("gem", seed=1, accuracy=cut, diverged=2)
    gone = make("ewc", accuracy=cut, diverged=2)
    for draw in FIGURES:
        figure, alone = draw([good, lost, gone]), draw([good])
        pixels(figure)
        assert legend_texts(figure)[:2] == ["gem (1 of 2 diverged)", "ewc (diverged)"]
        expected = lines(alone)["gem"].get_xydata()
        np.testing.assert_array_equal(lines(figure)["gem (1 of 2 diverged)"].get_xydata(), expected)
    curve = lines(accuracy_figure([good, gone]))["ewc (diverged)"].get_ydata()
    assert list(np.isfinite(curve)) == [True, True, False, False]


def test_what_is_measured_at_the_end_only_shows_and_is_said():
    accuracy = np.full((20, 20), np.nan)
    accuracy[-1] = 0.8
    curves = accuracy_figure([make("gem", size=20), make("joint", accuracy=accuracy, size=20)])
    line = lines(curves)["joint (only at the end)"]
    assert line.get_ydata()[-1] == pytest.approx(0.8)
    assert line.get_markevery() == 1


def test_above_the_diagonal_does_not_matter():
    known = make(accuracy=np.tril(make().accuracy) + np.triu(np.full((4, 4), 0.3), 1))
    hole = make(accuracy=np.where(np.tri(4, dtype=bool), known.accuracy, np.nan))
    for draw in FIGURES:
        np.testing.assert_array_equal(pixels(draw([known])), pixels(draw([hole])))


@pytest.mark.parametrize("draw", FIGURES)
def test_names_are_no_formulas(draw):
    figure = draw([make(r"$\nonsense$", stream="a$b$")])
    pixels(figure)
    assert "a" in figure.axes[0].get_title()


@pytest.mark.parametrize("draw", FIGURES)
def test_long_names_leave_room_for_the_axes(draw):
    name = "mgem-d [memory_groups=8, parameter_groups=16, patterns_per_experience=128, epsilon=0.5]"
    figure = draw([make(name, stream="s" * 150), make("gem", stream="s" * 150)])
    pixels(figure)
    axes = figure.axes[0].get_window_extent()
    assert axes.width > figure.bbox.width / 2
    assert not figure.legends[0].get_window_extent().overlaps(axes)
    assert figure.axes[0].title.get_window_extent().x1 <= figure.bbox.x1


@pytest.mark.parametrize("draw", FIGURES)
def test_axes_and_stream_are_named(draw):
    axes = draw([make()]).axes[0]
    assert "rotations" in axes.get_title()
    assert axes.get_xlabel()
    assert axes.get_ylabel()


@pytest.mark.parametrize("draw", FIGURES)
def test_figures_refuse_what_they_cannot_average(draw):
    with pytest.raises(ValueError, match="results must hold at least one run"):
        draw([])
    with pytest.raises(ValueError, match="results must be of one stream"):
        draw([make(stream="a"), make(stream="b")])


def test_runs_of_unequal_length_make_no_curve():
    with pytest.raises(ValueError, match=r"results of method='gem' .* got \[3, 4\]"):
        accuracy_figure([make(), make(seed=1, size=3)])


@pytest.mark.parametrize("plot", [plot_accuracy, plot_tradeoff])
def test_written_file_is_a_png_and_nothing_global_moved(plot, tmp_path):
    before = dict(mpl.rcParams)
    plot(make_many(["gem", "ewc"]), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(PNG)
    assert [file.name for file in tmp_path.iterdir()] == ["plot.png"]
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("plot", [plot_accuracy, plot_tradeoff])
def test_a_failed_plot_leaves_the_old_file(plot, tmp_path, monkeypatch):
    path = tmp_path / "plot.png"
    path.write_bytes(b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        plot([make()], path)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["plot.png"]


def test_png_has_150_dots_an_inch():
    figure = accuracy_figure([make()])
    width = int.from_bytes(png(figure)[16:20], "big")
    assert width == 150 * figure.get_figwidth()
