"""What TensorBoard finds in the log of a report."""

import math

import numpy as np
import pytest
from made_results import configuration, held_out, joint, made
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from avalanche_mgem.report.figures.heatmaps import heatmap_figure
from avalanche_mgem.report.tensorboard import (
    event_files,
    hyperparameters,
    write_hparams,
    write_images,
)


def read(folder):
    log = EventAccumulator(str(folder))
    log.Reload()
    return log


def shown_in_the_tab(log):
    content = log.PluginTagToContent(metadata.PLUGIN_NAME)
    start = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    metadata.parse_session_end_info_plugin_data(content[metadata.SESSION_END_INFO_TAG])
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}


def test_settings_and_scores_of_each_run_are_there(tmp_path):
    settings = configuration(1, memory_groups=4, online=True, layers=[1, 2], nothing=None)
    run = made("mgem-d", 1, configuration=settings)
    write_hparams([made(), run], tmp_path)
    log = read(tmp_path / "permuted-digits" / "mgem-d" / "seed1")
    assert shown_in_the_tab(log) == {
        "method": "mgem-d",
        "stream": "permuted-digits",
        "seed": 1,
        "memory_strength": 0.5,
        "memory_groups": 4,
        "online": "true",
        "layers": "[1, 2]",
        "learning_rate": 0.1,
        "device": "cpu",
        "model": "MLPFactory(hidden=(100, 100))",
        "n_experiences": 3,
    }
    for tag in ("ACC", "BWT", "LA", "FWT"):
        value = log.Scalars(f"score/{tag}")[0].value
        assert value == pytest.approx(run.scores[tag.lower()])


def test_no_run_speaks_for_the_others(tmp_path):
    # TensorBoard would show the settings that one run lists and hide those of the others.
    write_hparams([made(), made("ewc")], tmp_path)
    for file in event_files(tmp_path):
        tags = read(file.parent).PluginTagToContent(metadata.PLUGIN_NAME)
        assert metadata.EXPERIMENT_TAG not in tags


def test_what_was_not_measured_is_no_number(tmp_path):
    assert math.isnan(joint().scores["bwt"])
    write_hparams([joint()], tmp_path)
    log = read(tmp_path / "permuted-digits" / "joint" / "seed0")
    assert log.Tags()["scalars"] == ["score/ACC"]


def test_scores_on_validation_data_are_beside_the_others(tmp_path):
    write_hparams([made(validation=held_out())], tmp_path)
    log = read(tmp_path / "permuted-digits" / "gem" / "seed0")
    scores = [f"{group}/{name}" for group in ("score", "validation") for name in ("ACC", "BWT")]
    assert set(scores) <= set(log.Tags()["scalars"])
    assert log.Scalars("validation/ACC")[0].value == 0.5


def test_a_run_that_diverged_says_so_and_has_no_scores(tmp_path):
    write_hparams([made(diverged=2)], tmp_path)
    log = read(tmp_path / "permuted-digits" / "gem" / "seed0")
    assert log.Tags()["scalars"] == ["diverged"]
    assert log.Scalars("diverged")[0].value == 2


def test_names_become_folders_that_exist_nowhere_else(tmp_path):
    write_hparams([made("a/b"), made("a_b"), made("..")], tmp_path / "log")
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    folders = {file.parent.parent for file in event_files(tmp_path)}
    assert len(folders) == 3
    assert {folder.parent for folder in folders} == {tmp_path / "log" / "permuted-digits"}


def test_a_setting_named_like_the_run_itself_does_not_hide_it():
    run = made(configuration=configuration(seed=7, method="x"))
    assert hyperparameters(run)["method"] == "gem"
    assert hyperparameters(run)["seed"] == 0


def test_figures_are_images(tmp_path):
    figure = heatmap_figure([made()])
    write_images({"heatmaps": figure}, tmp_path)
    image = read(tmp_path).Images("heatmaps")[0]
    width, height = np.round(figure.get_size_inches() * figure.dpi)
    assert (image.width, image.height) == (int(width), int(height))
