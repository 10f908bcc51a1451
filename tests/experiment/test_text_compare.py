"""Comparisons on text: every method trains, they continue, and what is wrong is said before."""

import csv
import io
import json
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch
from avalanche.training.supervised import Naive
from rich.console import Console
from text_cases import TextHeads, write_task
from text_runs import TASKS, TRAINING, make_tokenizer, stream_and_model, write_all

from avalanche_mgem.experiment import (
    METHODS,
    TEXT_METHODS,
    MLPFactory,
    TextModelFactory,
    TextStream,
    Training,
    compare,
    find_method,
)
from avalanche_mgem.experiment.checks import check_runs
from avalanche_mgem.experiment.configuration import RunSpecification
from avalanche_mgem.experiment.run import run
from avalanche_mgem.experiment.workers import require_picklable
from avalanche_mgem.streams.text import TextSample, TextTask

T = len(TASKS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("text"))


def specification(place, name, model="bert", *, training=TRAINING, **settings):
    stream, factory = stream_and_model(place, model, **settings)
    method = find_method(name) if isinstance(name, str) else name
    return RunSpecification(method, stream, 0, factory, training)


def files(place):
    return {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()}


OTHERS = ["lora+migu", "inclora+migu-update", "olora+migu", "replay+migu", "mgem-d+migu"]


@pytest.mark.parametrize("name", [*(n for n in METHODS if n != "gem"), *OTHERS])
def test_every_method_but_gem_classifies_texts(folder, name):
    each = specification(folder, name)
    check_runs([each])
    result = run(each)
    assert np.isfinite(result.scores["acc"])
    assert result.metrics["Distance_Relative"] > 0
    assert ("Gating_Overlap" in result.metrics) == ("migu" in name)
    assert ("Orthogonality_Penalty" in result.metrics) == ("olora" in name)
    heads_seen = np.tri(T, dtype=bool)
    if METHODS.get(name, find_method(name)).whole_stream:
        heads_seen = np.arange(T)[:, None] == T - 1
    np.testing.assert_array_equal(np.isfinite(result.accuracy), heads_seen & np.ones((T, T), bool))


@pytest.mark.cover
@pytest.mark.parametrize("model", ["t5", "llama"])
@pytest.mark.parametrize("name", ["naive", "replay+migu", "lora+migu-update", "mgem-d"])
def test_models_that_answer_in_words(folder, model, name):
    each = specification(folder, name, model)
    check_runs([each])
    result = run(each)
    # There is no head that would grow: tasks are evaluated before they are trained.
    assert np.isfinite(result.accuracy).all()
    assert np.isfinite(result.scores["fwt"])


def test_what_is_learnt_is_told_apart_from_chance(folder):
    longer = Training(**{**vars(TRAINING), "epochs": 10})
    assert run(specification(folder, "cumulative", training=longer)).scores["acc"] > 0.9
    learnt = run(specification(folder, "cumulative", "llama", training=longer))
    assert learnt.scores["acc"] > learnt.baseline.mean() + 0.3


def test_the_same_twice_and_in_other_orders_of_batches_not(folder):
    one, two = (run(specification(folder, "inclora+migu")) for _ in range(2))
    np.testing.assert_array_equal(one.accuracy, two.accuracy)
    assert one.metrics == two.metrics
    assert one.configuration == two.configuration
    plain = Training(**{**vars(TRAINING), "length_buckets": None})
    other = specification(folder, "inclora+migu", training=plain)
    assert other.key != specification(folder, "inclora+migu").key
    assert run(other).metrics != one.metrics


@pytest.mark.parametrize("model", ["bert", "t5"])
def test_texts_are_held_out_for_validation(folder, model):
    held_out = Training(**{**vars(TRAINING), "validation": 0.25})
    each = specification(folder, "replay", model, training=held_out)
    check_runs([each])
    scenario = each.scenario()
    sizes = [len(e.dataset) for e in (*scenario.train_stream, *scenario.validation_stream)]
    assert sizes == [12] * T + [4] * T
    result = run(each)
    assert np.isfinite(result.validation.accuracy[-1]).all()
    assert np.isfinite(result.validation_scores["validation_acc"])


def test_it_leaves_what_a_comparison_leaves_and_continues(folder, tmp_path, monkeypatch):
    stream, model = stream_and_model(folder)

    def call(methods):
        console = Console(file=io.StringIO(), width=100)
        results = compare(
            methods,
            stream=stream,
            model=model,
            training=TRAINING,
            seeds=1,
            out=tmp_path / "out",
            console=console,
        )
        return results, console.file.getvalue()

    results, text = call(TEXT_METHODS)
    assert [result.method for result in results] == list(TEXT_METHODS)
    assert "text:colours,animals,sizes" in text
    out = tmp_path / "out"
    with (out / "results.csv").open(newline="") as file:
        table = {row["method"]: row for row in csv.DictReader(file)}
    assert float(table["naive"]["metrics.Distance_Absolute"]) > 0
    assert table["naive"]["metrics.Gating_MaskedShare"] == ""
    assert float(table["migu"]["metrics.Gating_MaskedShare"]) > 0
    assert table["lora+migu"]["versions.peft"] != ""
    assert table["naive"]["configuration.model.name"] == "bert"
    for name in ("accuracy.png", "tradeoff.png"):
        assert (out / name).read_bytes()[1:4] == b"PNG"
    done = files(out / "runs")
    monkeypatch.setattr(Naive, "train", lambda *_: pytest.fail("trained"))
    again, text = call(TEXT_METHODS)
    assert [r.to_json() for r in again] == [r.to_json() for r in results]
    assert "8 of 8 runs are finished already." in text
    assert files(out / "runs") == done


def test_a_model_is_loaded_once_to_check_all_methods(folder, monkeypatch):
    loaded = []
    module = import_module("avalanche_mgem.huggingface.classifier")
    real = module.text_classifier
    monkeypatch.setattr(
        module, "text_classifier", lambda *a, **k: loaded.append(a) or real(*a, **k)
    )
    before = torch.get_rng_state()
    check_runs([specification(folder, name) for name in ("naive", "lora+migu", "migu", "olora")])
    assert len(loaded) == 1
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_is_known_by_what_its_files_hold(folder, tmp_path):
    key = specification(folder, "naive").key
    moved = write_all(tmp_path / "elsewhere")
    assert specification(moved, "naive").key == key
    require_picklable([specification(folder, "lora+migu")])
    described = specification(folder, "naive").description()
    assert str(folder) not in json.dumps(described)
    others = [
        specification(folder, "naive", tasks="colours,animals"),
        specification(folder, "naive", tasks="animals,colours"),
        specification(folder, "naive", max_length=31),
        specification(folder, "naive", train_per_experience=8),
        specification(folder, "naive", shared_labels=True),
    ]
    config = moved / "bert" / "config.json"
    config.write_text(config.read_text().replace('"gelu"', '"relu"'))
    others.append(specification(moved, "naive"))
    again = write_all(tmp_path / "again")
    line = (again / "tasks" / "sizes" / "test.jsonl").open("a")
    with line:
        line.write('{"text": "small", "label": 0}\n')
    others.append(specification(again, "naive"))
    keys = {key, *(other.key for other in others)}
    assert len(keys) == 1 + len(others)


def test_how_words_are_found_counts_where_models_answer_in_words(tmp_path):
    place = write_all(tmp_path)
    keys = {name: specification(place, "naive", name).key for name in ("bert", "t5", "llama")}
    for name, key in keys.items():
        path = place / name / "generation_config.json"
        settings = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**settings, "suppress_tokens": [3]}))
        assert (specification(place, "naive", name).key == key) == (name == "bert")


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_a_model_that_answers_in_words_has_the_streams_tokenizer(tmp_path, name):
    place = write_all(tmp_path)
    each = specification(place, "naive", name)
    for folder, words in (("same", {}), ("other", {"eos_token": "<s>"})):
        make_tokenizer(**words).save_pretrained(tmp_path / folder)
    same, other = (
        replace(each, model=replace(each.model, tokenizer=str(tmp_path / folder)))
        for folder in ("same", "other")
    )
    assert len({each.key, same.key, other.key}) == 3
    assert str(tmp_path) not in json.dumps(same.description())
    check_runs([same])  # wherever it lies
    with pytest.raises(ValueError, match=r"tokenizer=.*other.* has other ids than the stream's"):
        check_runs([other])


def test_orders_and_tasks_have_names(folder):
    def name(tasks):
        return TextStream(tasks, tokenizer="x", folder="y").name

    assert (name("4"), name(4)) == ("text-4", "text-4")
    assert name("a, b") == name(["a", "b"]) == "text:a,b"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": "colour"}, "has no task 'colour'; did you mean 'colours'"),
        ({"folder": "nowhere"}, "folder='nowhere' does not exist"),
        ({"tokenizer": "./nowhere"}, r"tokenizer='\./nowhere' is no folder"),
        ({"max_length": 41}, "max_length=41: the model has positions for 40 tokens"),
        ({"form": "causal"}, "form='classification' of the model is not the stream's, 'causal'"),
        ({"task_labels": False}, "heads='multi' needs a stream with task_labels=True"),
    ],
)
def test_a_stream_that_does_not_fit_is_refused(folder, settings, message):
    each = specification(folder, "naive", **settings)
    with pytest.raises(ValueError, match=message):
        check_runs([each])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("7",), "tasks: unknown order '7'"),
        (("agnew",), "tasks: unknown 'agnew'; did you mean 'agnews'"),
        (("agnews,agnews",), "tasks must be different"),
        (("1", {"form": "clasification"}), "form: unknown"),
        (("1", {"max_length": 0}), "max_length must be"),
    ],
)
def test_a_stream_that_cannot_be_is_refused_at_once(arguments, message):
    tasks, *settings = arguments
    with pytest.raises(ValueError, match=message):
        TextStream(tasks, tokenizer="x", **(settings[0] if settings else {}))


@pytest.mark.parametrize(
    ("name", "model", "changes", "message"),
    [
        ("gem", "bert", {}, "^gem: Avalanche's GEMPlugin .* mgem-p and mgem-d"),
        ("lwf", "llama", {}, "^lwf: distillation"),
        ("migu", "bert", {"target_modules": "quer"}, r"^migu\.target_modules.* 'query'"),
        ("lora", "bert", {"target_modules": ["quer"]}, r"^lora\.target_modules.* 'query'"),
        ("lora+migu", "bert", {"lora.target_modules": ["x"]}, r"^lora\+migu\.lora\.target_modules"),
        ("lora+migu", "bert", {"migu.target_modules": ["x"]}, r"^lora\+migu\.migu\.target_modules"),
        ("olora", "bert", {"orthogonality": -1}, r"^olora\.orthogonality"),
    ],
)
def test_a_method_that_does_not_fit_is_refused(folder, name, model, changes, message):
    method = find_method(name).variant(**changes)
    with pytest.raises(ValueError, match=message):
        check_runs([specification(folder, method, model)])


def test_a_tokenizer_of_another_model_is_refused(folder, tmp_path):
    make_tokenizer().save_pretrained(tmp_path / "more")
    tokenizer = json.loads((tmp_path / "more" / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["further"] = len(tokenizer["model"]["vocab"])
    (tmp_path / "more" / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match=r"tokenizer .* has ids up to"):
        check_runs([specification(folder, "naive", tokenizer=str(tmp_path / "more"))])


def test_a_model_for_images_is_refused(folder):
    stream, _ = stream_and_model(folder)
    each = RunSpecification(find_method("naive"), stream, 0, MLPFactory(), TRAINING)
    with pytest.raises(ValueError, match=r"model=MLPFactory.* take TextModelFactory"):
        check_runs([each])


def test_a_model_without_a_layer_to_gate_is_refused(folder):
    stream, _ = stream_and_model(folder)
    each = RunSpecification(find_method("migu"), stream, 0, lambda *_: TextHeads(), TRAINING)
    with pytest.raises(ValueError, match=r"^migu: .*layer"):
        check_runs([each])


@pytest.mark.parametrize("package", ["transformers", "datasets"])
def test_a_missing_package_is_told(folder, monkeypatch, package):
    def missing(*_, **__):
        raise ImportError(f"this needs {package}: pip install 'avalanche-mgem[hf]'")

    places = {
        "transformers": "avalanche_mgem.experiment.text.stream.load_tokenizer",
        "datasets": "avalanche_mgem.streams.text.stream.text_stream",
    }
    monkeypatch.setattr(places[package], missing)
    with pytest.raises(ValueError, match=f"{package}: pip install"):
        check_runs([specification(folder, "naive")])


def test_a_mistake_in_a_users_code_stays_what_it_is(folder):
    def broken(seed):
        raise ImportError("cannot import name 'x'")

    each = RunSpecification(find_method("naive"), broken, 0, TextModelFactory("x"), TRAINING)
    with pytest.raises(ImportError, match="cannot import name"):
        check_runs([each])


def many_labels(words):
    samples = [TextSample(f"one {words[i % len(words)]}", i % len(words)) for i in range(18)]
    return TextTask(f"of{len(words)}", words, samples, samples[:6])


@pytest.mark.parametrize("heads", ["multi", "single", "growing"])
def test_tasks_may_have_different_numbers_of_labels(folder, tmp_path, heads):
    for words in (("red", "green"), ("red", "blue", "green")):
        write_task(tmp_path, many_labels(words))
    settings = {"folder": str(tmp_path), "tasks": "of2,of3", "task_labels": heads == "multi"}
    stream, _ = stream_and_model(folder, **settings)
    factory = TextModelFactory(str(folder / "bert"), heads=heads)
    each = RunSpecification(find_method("replay+migu"), stream, 0, factory, TRAINING)
    check_runs([each])
    result = run(each)
    assert result.accuracy.shape == (2, 2)
    assert np.isfinite(result.scores["fwt"]) == (heads == "single")
