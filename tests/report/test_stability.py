"""The picture of the stability gap."""

from dataclasses import replace

import numpy as np
import pytest
from made_results import curve, joint, made, many

from avalanche_mgem.evaluation import AccuracyCurve
from avalanche_mgem.report.figures.canvas import pixels
from avalanche_mgem.report.figures.stability import has_curve, stability_figure


def watched(run):
    return replace(run, curve=curve(run.accuracy))


def panels(figure):
    return {axes.get_title(): axes for axes in figure.axes if axes.get_title()}


def test_lines_are_means_over_the_seeds_from_the_end_of_the_task_on():
    results = [watched(run) for run in many(["gem", "ewc"], 3)]
    shown = panels(stability_figure(results))
    assert list(shown) == ["Task 1", "Task 2"]
    for task in range(2):
        lines = {line.get_label(): line for line in shown[f"Task {task + 1}"].lines}
        for method in ("gem", "ewc"):
            curves = [run.curve for run in results if run.method == method]
            chosen = np.array(curves[0].iterations) >= 10 * (task + 1)
            mean = np.mean([each.accuracy[chosen, task] for each in curves], axis=0)
            x, y = lines[method].get_xydata().T
            np.testing.assert_array_equal(x, np.array(curves[0].iterations)[chosen])
            np.testing.assert_allclose(y, mean)


def test_tasks_end_where_they_did():
    axes = panels(stability_figure([watched(made())]))["Task 1"]
    dotted = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == ":"]
    assert dotted == [10, 20, 30]


def test_methods_that_were_not_watched_are_left_out():
    results = [watched(made()), made("ewc"), joint()]
    figure = stability_figure(results)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["gem"]
    assert has_curve(results)
    assert not has_curve([made()])


def test_seeds_that_diverged_are_left_out_and_counted():
    cut = watched(made(seed=1)).curve.up_to(1, 3)
    results = [watched(made()), replace(made(seed=1), diverged=1, curve=cut)]
    figure = stability_figure(results)
    axes = panels(figure)["Task 1"]
    assert axes.lines[0].get_label() == "gem (1 of 2 diverged)"
    alone = panels(stability_figure(results[:1]))["Task 1"]
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), alone.lines[0].get_xydata())
    only = panels(stability_figure(results[1:]))["Task 1"].lines[0]
    assert only.get_xdata().tolist() == [10]


def test_tasks_that_were_trained_at_once_have_no_line():
    together = joint()
    at_once = AccuracyCurve([0, 10, 30], [0, 3, 3], np.full((3, 3), 0.5))
    results = [replace(together, curve=at_once), watched(made())]
    assert [text.get_text() for text in stability_figure(results).legends[0].get_texts()] == ["gem"]
    assert "Task 1" not in panels(stability_figure(results[:1]))


@pytest.mark.parametrize("results", [[made()], [watched(made(size=1))]])
def test_nothing_to_see_is_said(results):
    texts = [text.get_text() for axes in stability_figure(results).axes for text in axes.texts]
    assert any("--eval-every" in text for text in texts)


@pytest.mark.parametrize("size", [2, 4, 12])
def test_any_length_of_stream(size):
    figure = stability_figure([watched(made(size=size))])
    pixels(figure)
    assert len(panels(figure)) == min(4, size - 1)


def test_seeds_that_were_evaluated_at_other_times_share_what_they_have():
    one, two = made(), made(seed=1)
    results = [watched(one), replace(two, curve=curve(two.accuracy, every=5))]
    line = panels(stability_figure(results))["Task 1"].lines[0]
    assert line.get_xdata().tolist() == [10, 20, 30]


def test_figures_refuse_what_they_cannot_average():
    with pytest.raises(ValueError, match="at least one run"):
        stability_figure([])
    with pytest.raises(ValueError, match="as many experiences"):
        stability_figure([made(), made(seed=1, size=4)])
