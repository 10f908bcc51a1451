"""Minibatches of texts in parts: padding, losses over tokens, dict batches."""

import pickle

import pytest
import torch
from answer_cases import make_stream, make_t5, make_tokenizer
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive, Replay
from text_cases import WordTokenizer, make_task
from tiny import parameter_vector, relative_distance, train
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, BertModel

from avalanche_mgem import (
    MGEMPlugin,
    MIGUPlugin,
    with_gradient_accumulation,
    with_mixed_precision,
)
from avalanche_mgem.huggingface import (
    TokenLoss,
    label_words_of,
    text_classifier,
    text_to_text,
    with_dict_batches,
)
from avalanche_mgem.streams.text import text_stream

BERT = BertConfig(
    vocab_size=50,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    num_labels=3,
)


def strategy_of(model, strategy=Naive, plugins=(), **arguments):
    return strategy(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        train_mb_size=8,
        plugins=list(plugins),
        evaluator=EvaluationPlugin(),
        **arguments,
    )


def same(one, other):
    return relative_distance(parameter_vector(one.model), parameter_vector(other.model)) < 1e-4


def texts():
    tasks = [make_task(name, n_train=20) for name in ("a", "b")]
    return text_stream(tasks, tokenizer=WordTokenizer(), max_length=16, task_labels=True)


@pytest.mark.parametrize("recompute", [True, False])
def test_scores_leave_the_padding_of_every_part_out(recompute):
    ends, scores = [], []
    for strategy, arguments in (
        (Naive, {}),
        (with_gradient_accumulation(Naive), {"micro_batch_size": 3, "recompute": recompute}),
    ):
        torch.manual_seed(0)
        model = text_classifier(BertModel(BERT))
        plugins = [MGEMPlugin(8, seed=0), MIGUPlugin(0.5, skip_tasks=0, ignore_padding=True)]
        made = strategy_of(model, strategy, plugins, **arguments)
        ends.append(train(made, texts().train_stream))
        scores.append(plugins[1].last_scores)
    torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-6)
    assert same(*ends)


def test_a_loss_over_tokens_is_that_of_the_whole_minibatch():
    def end(strategy, **arguments):
        stream = make_stream("text-to-text")
        model = text_to_text(make_t5(), make_tokenizer(), label_words_of(stream))
        made = strategy_of(model, strategy, [MIGUPlugin(0.5)], criterion=TokenLoss(), **arguments)
        return train(made, stream.train_stream)

    divided = with_gradient_accumulation(Naive)
    assert same(end(divided, micro_batch_size=3), end(Naive))
    with pytest.raises(ValueError, match="recompute=False takes a model whose output is a tensor"):
        end(divided, micro_batch_size=3, recompute=False)
    half = end(with_mixed_precision(divided), micro_batch_size=3, precision="bf16")
    assert parameter_vector(half.model).isfinite().all()


def test_dict_batches_are_divided_too_and_the_strategy_pickles():
    ends = []
    for wrap, arguments in (
        (lambda s: s, {}),
        (with_gradient_accumulation, {"micro_batch_size": 3}),
    ):
        torch.manual_seed(0)
        made = wrap(with_dict_batches(Replay))
        arguments |= {"mem_size": 8, "criterion": nn.CrossEntropyLoss()}
        strategy = strategy_of(BertForSequenceClassification(BERT), made, **arguments)
        ends.append(train(strategy, texts().train_stream))
    assert same(*ends)
    assert pickle.loads(pickle.dumps(ends[1])).micro_batch_size == 3
