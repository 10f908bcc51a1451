"""R as heat maps, and what was forgotten of each task."""

import numpy as np
import pytest
from made_results import joint, made, many

from avalanche_mgem.report.figures.canvas import pixels
from avalanche_mgem.report.figures.forgetting import forgetting_figure, forgetting_of_tasks
from avalanche_mgem.report.figures.heatmaps import heatmap_figure, short_number
from avalanche_mgem.results.statistics import mean_interval

FIGURES = [forgetting_figure, heatmap_figure]


def maps(figure):
    return {axes.get_title(): axes for axes in figure.axes if axes.get_title()}


def note(figure):
    return figure.get_supxlabel()


def texts(figure):
    return "\n".join(text.get_text() for axes in figure.axes for text in axes.texts)


def test_a_map_is_the_mean_over_the_seeds_on_one_scale():
    results = many(["naive", "gem", "ewc"], 3)
    panels = maps(heatmap_figure(results))
    assert list(panels) == ["naive", "gem", "ewc"]
    scales = set()
    for method, axes in panels.items():
        image = axes.images[0]
        mean = np.mean([run.accuracy for run in results if run.method == method], axis=0)
        np.testing.assert_allclose(image.get_array(), mean)
        scales.add(image.get_clim())
        assert image.get_cmap().name == "viridis"
    assert len(scales) == 1


def test_seeds_that_diverged_are_left_out_and_said():
    cut = np.array(made("ewc").accuracy)
    cut[1:] = np.nan
    good, lost = made(), made(seed=1, accuracy=cut, diverged=1)
    gone = made("ewc", accuracy=cut, diverged=1)
    panels = maps(heatmap_figure([good, lost, gone]))
    assert list(panels) == ["gem (1 of 2 diverged)", "ewc (diverged)"]
    shown = panels["gem (1 of 2 diverged)"].images[0].get_array()
    np.testing.assert_allclose(shown, good.accuracy)
    assert panels["ewc (diverged)"].images[0].get_array().mask.sum() == 6
    figure = forgetting_figure([good, lost, gone])
    assert "Seeds left out: gem (1 of 2 diverged), ewc (diverged)" in note(figure)
    np.testing.assert_array_equal(
        forgetting_of_tasks("gem", [good, lost]), forgetting_of_tasks("gem", [good])
    )


def test_what_a_seed_did_not_measure_is_no_colour_but_hatched():
    holed = made(seed=1)
    holed.accuracy[0, 2] = np.nan
    figure = heatmap_figure([made(), holed])
    axes = maps(figure)["gem"]
    assert axes.images[0].get_array().mask.sum() == 1
    assert len(axes.texts) == 8
    assert "not measured" in note(figure)
    assert axes.patches[0].get_hatch()
    assert "not measured" not in note(heatmap_figure([made()]))


def test_numbers_are_written_where_they_can_be_read():
    assert len(maps(heatmap_figure([made(size=10)]))["gem"].texts) == 100
    assert len(maps(heatmap_figure([made(size=11)]))["gem"].texts) == 0


def test_numbers_stand_out_from_their_cell():
    axes = maps(heatmap_figure([made(accuracy=np.array([[0.0, 0.5], [0.9, 1.0]]), size=2)]))["gem"]
    assert [text.get_color() for text in axes.texts] == ["white", "white", "black", "black"]
    assert [text.get_text() for text in axes.texts] == [".00", ".50", ".90", "1"]
    assert short_number(0.996) == "1"


def test_forgetting_of_a_task_is_what_it_lost_of_its_best():
    results = many(["gem"], 3)
    for run in results:
        run.accuracy[1, 0] = 0.95  # better after the second task than when it was new
    losses = forgetting_of_tasks("gem", results)
    for task in range(2):
        lost = [run.accuracy[task:-1, task].max() - run.accuracy[-1, task] for run in results]
        np.testing.assert_allclose(losses[task], mean_interval(lost))
    overall = np.mean([run.scores["forgetting"] for run in results])
    assert losses[:, 0].mean() == pytest.approx(overall)
    line = maps(forgetting_figure(results))[f"gem: {overall:.3f}"].containers[0].lines[0]
    np.testing.assert_allclose(line.get_xydata(), np.c_[[1, 2], losses[:, 0]])


def test_what_has_no_forgetting_has_no_panel_and_is_named():
    figure = forgetting_figure([*many(["gem", "naive"]), joint()])
    assert [title.split(":")[0] for title in maps(figure)] == ["gem", "naive"]
    assert "Not measured: joint" in note(figure)
    assert "Not measured" not in note(forgetting_figure(many()))


@pytest.mark.parametrize("results", [[made(size=1)], [joint()]], ids=["one experience", "joint"])
def test_nothing_forgotten_that_could_be_is_said(results):
    assert "two experiences" in texts(forgetting_figure(results))


def test_nothing_measured_is_said():
    lost = made(accuracy=np.full((3, 3), np.nan))
    assert "No accuracy" in texts(heatmap_figure([lost]))


@pytest.mark.parametrize("draw", FIGURES)
@pytest.mark.parametrize("size", [1, 2, 20])
def test_any_length_of_stream(draw, size):
    pixels(draw([made(size=size), joint(size=size)]))


@pytest.mark.parametrize("draw", FIGURES)
def test_order_of_the_runs_of_a_method_does_not_matter(draw):
    results = many(["gem", "ewc"], 3)
    mixed = [results[i] for i in (2, 4, 0, 5, 1, 3)]
    np.testing.assert_array_equal(pixels(draw(results)), pixels(draw(mixed)))


@pytest.mark.parametrize("draw", FIGURES)
def test_titles_do_not_overlap(draw):
    methods = [f"mgem-{i} [memory_groups=4, patterns_per_experience=64]" for i in range(5)]
    figure = draw(many(methods, 1, stream="s" * 150))
    figure.draw_without_rendering()
    boxes = [axes.title.get_window_extent() for axes in maps(figure).values()]
    for i, box in enumerate(boxes):
        assert box.count_overlaps(boxes[:i]) == 0
        assert figure.bbox.padded(1).count_contains(box.corners()) == 4


@pytest.mark.parametrize("draw", FIGURES)
def test_names_are_no_formulas(draw):
    pixels(draw([made(r"$\nonsense$", stream="a$b$")]))


@pytest.mark.parametrize("draw", FIGURES)
def test_figures_refuse_what_they_cannot_average(draw):
    with pytest.raises(ValueError, match="results must hold at least one run"):
        draw([])
    with pytest.raises(ValueError, match=r"results of method='gem' .* got \[3, 4\]"):
        draw([made(), made(seed=1, size=4)])
