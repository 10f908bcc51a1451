"""Runs of several folders: each once, each kept apart from what it is not."""

import itertools
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_results import configuration, made, many, saved

from avalanche_mgem.experiment import load_results
from avalanche_mgem.report.markdown import markdown_table
from avalanche_mgem.results.summary import by_method, by_stream
from avalanche_mgem.results.variants import identity, named_settings, told_apart


def names(results):
    return list(dict.fromkeys(run.method for run in results))


def with_settings(method="mgem-d", seed=0, **settings):
    return made(method, seed, configuration=configuration(seed, **settings))


def test_what_was_saved_is_loaded(tmp_path):
    results = many(["naive", "gem"])
    assert [run.to_json() for run in load_results(saved(tmp_path, results))] == [
        run.to_json() for run in results
    ]


def test_methods_come_as_in_the_registry_whatever_the_order_of_the_folders(tmp_path):
    folders = [
        saved(tmp_path / "a", many(["zebra", "mgem-d"])),
        saved(tmp_path / "b", many(["gem", "naive"])),
        saved(tmp_path / "c", many(["gem"], 3)),
    ]
    for order in itertools.permutations(folders):
        results = load_results(order)
        assert names(results) == ["naive", "gem", "mgem-d", "zebra"]
        assert [run.seed for run in results if run.method == "gem"] == [0, 1, 2]


def test_a_run_in_two_folders_counts_once(tmp_path):
    results = many()
    folders = [saved(tmp_path / "a", results), saved(tmp_path / "b", results)]
    assert len(load_results(folders)) == len(results)
    assert markdown_table(load_results(folders)) == markdown_table(load_results(folders[0]))


def test_other_settings_are_another_method(tmp_path):
    few = [with_settings(seed=s, memory_groups=4) for s in (0, 1)]
    more = [with_settings(seed=s, memory_groups=8) for s in (1, 2)]
    folders = [saved(tmp_path / "a", [*few, made("gem")]), saved(tmp_path / "b", more)]
    results = load_results(folders)
    assert names(results) == ["gem", "mgem-d [memory_groups=4]", "mgem-d [memory_groups=8]"]
    assert [run.seed for run in results[1:]] == [0, 1, 1, 2]


def test_other_versions_are_another_method_where_the_settings_are_the_same():
    old = made(versions={"torch": "2.4", "numpy": "2.0"})
    new = made(seed=1, versions={"torch": "2.9", "numpy": "2.0"})
    assert names(told_apart([old, new])) == ["gem [torch 2.4]", "gem [torch 2.9]"]
    stronger = replace(new, configuration=configuration(1, memory_strength=1.0))
    assert names(told_apart([old, stronger])) == [
        "gem [memory_strength=0.5]",
        "gem [memory_strength=1.0]",
    ]


def test_a_setting_that_only_some_have_is_told():
    results = told_apart([with_settings(), with_settings(seed=1, epsilon=0.1)])
    assert names(results) == ["mgem-d [epsilon=default]", "mgem-d [epsilon=0.1]"]


def test_long_values_that_begin_alike_are_told_apart():
    results = told_apart([with_settings(seed=s, rule="x" * 60 + "ab"[s]) for s in (0, 1)])
    assert len(set(names(results))) == 2
    assert all(len(name) < 80 for name in names(results))


def test_a_stream_with_other_arguments_is_another_stream():
    results = told_apart([made(), made("naive", size=5), made(seed=1)])
    assert {stream: len(runs) for stream, runs in by_stream(results).items()} == {
        "permuted-digits [n_experiences=3]": 2,
        "permuted-digits [n_experiences=5]": 1,
    }
    assert set(names(results)) == {"gem", "naive"}


settings = st.dictionaries(st.sampled_from("abc"), st.sampled_from([1, 1.5, "1", None, [1], True]))
runs = st.builds(
    lambda method, seed, settings, training, version: made(
        method,
        seed,
        configuration=configuration(seed, training=training, **settings),
        versions={"torch": version},
    ),
    st.sampled_from(["gem", "ewc"]),
    st.integers(0, 2),
    settings,
    settings,
    st.sampled_from(["2.4", "2.9"]),
)


def without_seed(run):
    settings = {k: v for k, v in run.configuration.items() if k != "seed"}
    return json.dumps([run.method, settings, run.versions], sort_keys=True)


@given(st.lists(runs, min_size=1, max_size=8, unique_by=identity))
def test_one_name_is_one_thing(results):
    told = told_apart(results)
    pairs = {(run.method, without_seed(before)) for run, before in zip(told, results, strict=True)}
    assert len({name for name, _ in pairs}) == len(pairs) == len({what for _, what in pairs})
    by_method(told)  # no seed twice
    for run, before in zip(told, results, strict=True):
        assert replace(run, method=before.method).to_json() == before.to_json()


@given(st.lists(runs, min_size=1, max_size=8, unique_by=identity), st.randoms())
def test_names_do_not_depend_on_the_order(results, random):
    named = {identity(a): b.method for a, b in zip(results, told_apart(results), strict=True)}
    random.shuffle(results)
    again = {identity(a): b.method for a, b in zip(results, told_apart(results), strict=True)}
    assert named == again


def test_settings_have_the_names_that_a_person_gave_them():
    run = with_settings(memory_groups=4, device="mine")
    assert named_settings(run) == {
        "strategy": "avalanche_mgem.strategies.MGEM",
        "memory_strength": 0.5,
        "memory_groups": 4,
        "settings.device": "mine",
        "training.device": "cpu",
        "learning_rate": 0.1,
        "model": "MLPFactory(hidden=(100, 100))",
        "n_experiences": 3,
        "stream.name": "permuted-digits",
        "stream.type": "NamedStream",
    }


def test_filters_keep_what_they_name_in_their_order(tmp_path):
    other = many(["naive", "gem"], stream="s")
    results = [*many(["naive", "gem", "ewc"]), with_settings(), with_settings(memory_groups=8)]
    folder = saved(tmp_path, [*results, *other])
    assert names(load_results(folder, only_methods=["gem", "naive"])) == ["gem", "naive"]
    assert len(load_results(folder, only_methods=["mgem-d"])) == 2
    full = "mgem-d [memory_groups=8]"
    assert names(load_results(folder, only_methods=[full])) == [full]
    assert len(load_results(folder, only_streams=["s"])) == len(other)
    streams = list(by_stream(load_results(folder, only_streams=["s", "permuted-digits"])))
    assert streams == ["s", "permuted-digits"]


def test_a_filter_that_nothing_answers_to_says_what_does(tmp_path):
    folder = saved(tmp_path, [*many(), made("ewc", stream="s")])
    with pytest.raises(ValueError, match=r"methods: unknown 'gme'; did you mean 'gem'"):
        load_results(folder, only_methods=["gme"])
    with pytest.raises(ValueError, match=r"streams: unknown 'permuted-digit'; did you mean"):
        load_results(folder, only_streams=["permuted-digit"])
    with pytest.raises(ValueError, match="methods: none of gem was run on s"):
        load_results(folder, only_methods=["gem"], only_streams=["s"])
    with pytest.raises(ValueError, match="methods must name at least one"):
        load_results(folder, only_methods=[])


def test_what_is_no_results_folder_is_named(tmp_path):
    good = saved(tmp_path / "good", many())
    empty = saved(tmp_path / "unfinished", [])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "holiday.jpg").touch()
    (tmp_path / "file").touch()
    for bad, message in [
        (tmp_path / "nowhere", "does not exist"),
        (tmp_path / "other", "is no results folder of a comparison"),
        (tmp_path / "file", "is no results folder of a comparison"),
        (empty, "has no finished run"),
        (good / "runs", f"did you mean {good}"),
        (tmp_path, f"did you mean {good}"),
    ]:
        with pytest.raises(ValueError, match=message) as error:
            load_results([good, bad])
        assert str(bad) in str(error.value)
    with pytest.raises(ValueError, match="at least one results folder"):
        load_results([])


def test_a_damaged_run_is_named(tmp_path):
    folder = saved(tmp_path, many())
    (folder / "runs" / "gem-seed9.json").write_text("{")
    with pytest.raises(ValueError, match=r"gem-seed9\.json is not a whole result"):
        load_results(folder)
