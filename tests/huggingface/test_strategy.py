"""Dict batches give what batches by position give, under Avalanche's strategies and ours."""

import copy
import pickle

import pytest
import torch
import transformers
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.scenarios import with_classes_timeline, with_task_labels
from avalanche.benchmarks.utils import (
    DataAttribute,
    TaskAwareSupervisedClassificationDataset,
    TaskLabels,
)
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from avalanche.training.supervised import EWC, LwF, Naive, Replay
from avalanche.training.templates import SupervisedTemplate
from text_cases import WordTokenizer, make_task
from tiny import make_strategy, parameter_vector, train
from tokenizers import Tokenizer, models
from torch import nn

from avalanche_mgem import MGEM
from avalanche_mgem.huggingface import (
    DictBatches,
    HuggingFaceStrategy,
    KeywordModel,
    by_keyword,
    by_position,
    text_classifier,
    with_dict_batches,
)
from avalanche_mgem.streams.text import TextBatch, text_stream
from avalanche_mgem.streams.text.batches import PadToLongest

CONFIGURATION = transformers.BertConfig(
    vocab_size=50,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    num_labels=9,
)
TASKS = {"a": ("red", "green", "blue"), "b": ("cat", "dog", "cow"), "c": ("sun", "moon", "sky")}
CASES = {
    Naive: {},
    Replay: {"mem_size": 12},
    EWC: {"ewc_lambda": 10.0},
    LwF: {"alpha": 1.0, "temperature": 2.0},
    MGEM: {"patterns_per_experience": 6, "seed": 0},
    SupervisedTemplate: {},
}


def classifier(seed=0):
    torch.manual_seed(seed)
    return transformers.BertForSequenceClassification(CONFIGURATION)


def collator():
    """What a user of transformers has."""
    words = Tokenizer(models.WordLevel({f"{i}": i for i in range(50)}, unk_token="0"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0")
    return transformers.DataCollatorWithPadding(tokenizer, return_tensors="pt")


def samples(task, shift):
    tokenizer = WordTokenizer()
    encoded = tokenizer([sample.text for sample in task], max_length=16)
    return [
        {"input_ids": ids, "attention_mask": [1] * len(ids), "label": sample.label + shift}
        for ids, sample in zip(encoded["input_ids"], task, strict=True)
    ]


def dict_stream(collate_fn, task_labels=False):
    """Three tasks of dict samples in Avalanche's own data sets."""
    parts = {"train": [], "test": []}
    for index, (name, words) in enumerate(TASKS.items()):
        task = make_task(name, words, n_train=24)
        for part, datasets in parts.items():
            rows = samples(getattr(task, part), 0 if task_labels else 3 * index)
            attributes = [
                DataAttribute([row["label"] for row in rows], "targets"),
                TaskLabels([index if task_labels else 0] * len(rows)),
            ]
            datasets.append(
                TaskAwareSupervisedClassificationDataset(
                    [rows], data_attributes=attributes, collate_fn=collate_fn
                )
            )
    return with_classes_timeline(with_task_labels(benchmark_from_datasets(**parts)))


def text_batches():
    """The same samples as a text stream."""
    tasks = [make_task(name, words, n_train=24) for name, words in TASKS.items()]
    return text_stream(tasks, tokenizer=WordTokenizer(), max_length=16, task_labels=False)


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def trained(kind, model, stream, plugins=(), **arguments):
    strategy = make_strategy(model, plugins, strategy=kind, optimizer=adamw, **arguments)
    return train(strategy, stream.train_stream)


@pytest.mark.parametrize("kind", list(CASES))
def test_dict_batches_train_as_text_batches_do(kind):
    expected = trained(kind, by_keyword(classifier()), text_batches(), **CASES[kind])
    strategy = trained(
        with_dict_batches(kind), classifier(), dict_stream(by_position(collator())), **CASES[kind]
    )
    assert torch.equal(parameter_vector(strategy.model), parameter_vector(expected.model))
    assert isinstance(strategy.model, KeywordModel)


@pytest.mark.parametrize("kind", [Naive, Replay, LwF, MGEM])
def test_plain_dicts_do_where_no_plugin_reads_them(kind):
    expected = trained(kind, by_keyword(classifier()), text_batches(), **CASES[kind])
    strategy = trained(
        with_dict_batches(kind), classifier(), dict_stream(collator()), **CASES[kind]
    )
    assert torch.equal(parameter_vector(strategy.model), parameter_vector(expected.model))


def test_a_plugin_that_would_read_plain_dicts_is_refused():
    with pytest.raises(ValueError, match=r"EWCPlugin reads batches by position .* by_position"):
        trained(with_dict_batches(EWC), classifier(), dict_stream(collator()), ewc_lambda=1.0)


@pytest.mark.parametrize("heads", ["multi", "growing"])
def test_heads_that_grow_train_on_dict_batches(heads):
    torch.manual_seed(0)
    model = text_classifier(transformers.BertModel(CONFIGURATION), heads=heads)
    stream = dict_stream(by_position(collator()), task_labels=heads == "multi")
    strategy = trained(with_dict_batches(Replay), model, stream, mem_size=12)
    assert strategy.model is model


def test_the_minibatch_answers_by_name_and_by_position():
    seen = []

    class Watch(SupervisedPlugin):
        def after_forward(self, strategy, **kwargs):
            seen.append((strategy.mb_x, strategy.mb_y, strategy.mb_task_id, strategy.mb_output))
            assert strategy.mbatch["labels"] is strategy.mbatch[1]

    trained(HuggingFaceStrategy, classifier(), dict_stream(collator(), True), [Watch()])
    features, labels, tasks, outputs = seen[-1]
    assert set(features) == {"input_ids", "attention_mask"}
    assert outputs.shape == (len(labels), 9)
    assert tasks.tolist() == [2] * len(labels)


def test_evaluation_takes_dicts():
    stream = dict_stream(collator())
    strategy = trained(HuggingFaceStrategy, classifier(), stream)
    strategy.evaluator = EvaluationPlugin(accuracy_metrics(experience=True))
    strategy.plugins[-1] = strategy.evaluator
    assert len(strategy.eval(stream.test_stream)) == 3


def test_a_strategy_of_ones_own():
    class Own(DictBatches, Replay):
        pass

    stream = dict_stream(collator())
    own = trained(Own, classifier(), stream, mem_size=6)
    made = trained(with_dict_batches(Replay), classifier(), stream, mem_size=6)
    assert torch.equal(parameter_vector(own.model), parameter_vector(made.model))
    assert with_dict_batches(Own) is Own
    assert with_dict_batches(Replay) is type(made)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
@pytest.mark.parametrize("kind", [HuggingFaceStrategy, with_dict_batches(Replay)])
def test_copies_train_on_the_same(copied, kind):
    stream = dict_stream(by_position(collator()))
    strategy = make_strategy(classifier(), strategy=kind, optimizer=adamw)
    train(strategy, stream.train_stream[:1])
    strategy.dataloader = None  # Avalanche's loaders hold generators
    other = copied(strategy)
    for each in (strategy, other):
        train(each, stream.train_stream, first=1)
    assert type(other) is kind
    assert other.model is not strategy.model
    assert torch.equal(parameter_vector(other.model), parameter_vector(strategy.model))


def test_batches_by_position():
    rows = [{"input_ids": [5], "label": 1}, {"input_ids": [6, 7], "label": 0}]
    batch = by_position(collator())(rows)
    assert isinstance(batch, TextBatch)
    assert batch["input_ids"].tolist() == [[5, 0], [6, 7]]
    assert batch[1].tolist() == [1, 0]
    assert batch[-1].tolist() == [0, 0]
    already = by_position(PadToLongest())([[{"input_ids": torch.tensor([3])}, 1, 2]])
    assert already["task_labels"].tolist() == [2]


def test_what_is_missing_is_said():
    with pytest.raises(ValueError, match="a batch needs labels, got a dict with input_ids, atten"):
        by_position(collator())([{"input_ids": [5]}])
    ids = {"input_ids": torch.tensor([[5, 6]])}
    with pytest.raises(ValueError, match="BertModel returns no logits: take a model with an out"):
        by_keyword(transformers.BertModel(CONFIGURATION))(ids)
    with pytest.raises(ValueError, match="strategy must be a class such as Naive or Replay, got 3"):
        with_dict_batches(3)


def test_other_models_stay_what_they_are():
    model = nn.Linear(2, 2)
    assert by_keyword(model) is model
