"""Parameter groups: what is in which, also after heads grew and parameters froze."""

import copy
import pickle
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import transformers
from avalanche.training.supervised import Naive
from text_cases import VOCABULARY, WordTokenizer, make_task
from tiny import Call, make_strategy, parameter_vector, train
from torch import nn

from avalanche_mgem.huggingface import ParameterGroupsPlugin, parameter_groups, text_classifier
from avalanche_mgem.streams.text import text_stream

RULE = partial(parameter_groups, weight_decay=0.1)
WITH_HEAD = partial(parameter_groups, weight_decay=0.1, learning_rate=1e-3, head_learning_rate=0.01)
TASKS = {"a": ("red", "green", "blue"), "b": ("cat", "dog"), "c": ("sun", "moon", "sky", "sea")}


def make_model(heads="multi"):
    torch.manual_seed(0)
    configuration = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
    )
    return text_classifier(transformers.BertModel(configuration), heads=heads, n_classes=3)


def make_stream(task_labels=True):
    tasks = [make_task(name, words, n_train=16) for name, words in TASKS.items()]
    return text_stream(tasks, tokenizer=WordTokenizer(), task_labels=task_labels)


def adamw(rule):
    return lambda model: torch.optim.AdamW(rule(model), lr=0.003)


def names_of(optimizer, model):
    """The names of the parameters of each group."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {g["name"]: {names[id(p)] for p in g["params"]} for g in optimizer.param_groups}


def test_biases_and_norms_do_not_decay_and_heads_have_their_rate():
    model = make_model("single")
    groups = {group["name"]: group for group in WITH_HEAD(model)}
    assert {name: (g["weight_decay"], g["lr"]) for name, g in groups.items()} == {
        "body": (0.1, 1e-3),
        "body, no decay": (0.0, 1e-3),
        "head": (0.1, 0.01),
        "head, no decay": (0.0, 0.01),
    }
    names = names_of(torch.optim.AdamW(groups.values()), model)
    assert names["head"] == {"classifier.weight"}
    assert names["head, no decay"] == {"classifier.bias"}
    plain = {name for name, _ in model.named_parameters()} - {"classifier.weight"}
    undecayed = {name for name in plain if name.endswith("bias") or "LayerNorm" in name}
    assert names["body, no decay"] == undecayed - {"classifier.bias"}
    assert names["body"] == plain - undecayed


@pytest.mark.parametrize(
    "body",
    [
        transformers.T5ForConditionalGeneration(
            transformers.T5Config(
                vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2
            )
        ),
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2)),
    ],
)
def test_norms_of_other_models_are_found(body):
    decayed = {id(p) for p in RULE(body)[0]["params"]}
    for name, p in body.named_parameters():
        assert (id(p) in decayed) == (p.ndim > 1), name


def check_groups(strategy, rule):
    """The optimiser has what the rule says, and state for nothing else."""
    optimizer = strategy.optimizer
    expected = {group["name"]: list(map(id, group["params"])) for group in rule(strategy.model)}
    assert {g["name"]: list(map(id, g["params"])) for g in optimizer.param_groups} == expected
    held = {each for ids in expected.values() for each in ids}
    assert {id(p) for p in optimizer.state} <= held
    optimizer.state_dict()


@pytest.mark.parametrize("heads", ["multi", "growing", "single"])
@pytest.mark.parametrize("rule", [RULE, WITH_HEAD])
@pytest.mark.parametrize("begins", ["grouped", "one group"])
def test_every_parameter_is_where_the_rule_says(heads, rule, begins):
    task_labels = heads != "growing"
    model = make_model(heads)
    if heads == "single":
        model.classifier = nn.Linear(8, 4)
    plugin = ParameterGroupsPlugin(rule)
    optimizer = adamw(rule if begins == "grouped" else lambda model: model.parameters())
    strategy = make_strategy(model, [plugin], optimizer=optimizer)
    for experience in make_stream(task_labels).train_stream:
        strategy.train(experience)
        check_groups(strategy, rule)


def test_without_the_plugin_avalanche_does_not_know_where_a_new_head_belongs():
    strategy = make_strategy(make_model(), optimizer=adamw(RULE))
    with pytest.raises(AttributeError, match="No unique group found"):
        train(strategy, make_stream().train_stream)


def test_groups_alike_train_as_one_group_does():
    rule = partial(parameter_groups, weight_decay=0.1, no_decay=[])
    results = []
    for plugins in ([], [ParameterGroupsPlugin(rule)]):
        strategy = make_strategy(
            make_model(),
            plugins,
            optimizer=lambda model: torch.optim.AdamW(model.parameters(), 0.003, weight_decay=0.1),
        )
        results.append(parameter_vector(train(strategy, make_stream().train_stream).model))
    assert torch.equal(*results)


def state_of(optimizer):
    return {p: {k: v.clone() for k, v in s.items()} for p, s in optimizer.state.items()}


def test_state_is_kept_to_the_bit():
    stream = make_stream().train_stream
    states, steps = [], []
    watch = Call(
        after_training_exp=lambda s: states.append(state_of(s.optimizer)),
        before_training_epoch=lambda s: steps.append(state_of(s.optimizer)),
    )
    strategy = make_strategy(
        make_model(), [ParameterGroupsPlugin(WITH_HEAD), watch], optimizer=adamw(WITH_HEAD)
    )
    train(strategy, stream)
    for before, after in zip(states, steps[1:], strict=False):
        kept = [p for p in before if p in after]
        assert len(kept) == len(before)
        for p in kept:
            assert all(torch.equal(after[p][key], before[p][key]) for key in before[p])


def test_what_is_frozen_is_out_and_comes_back_anew():
    model = make_model()
    frozen = model.encoder.encoder.layer[0]
    strategy = make_strategy(model, [ParameterGroupsPlugin(RULE)], optimizer=adamw(RULE))
    first, second, third = make_stream().train_stream
    strategy.train(first)
    frozen.requires_grad_(False)
    held = parameter_vector(frozen)
    other = next(p for p in model.encoder.encoder.layer[1].parameters())
    steps = strategy.optimizer.state[other]["step"].item()
    strategy.train(second)
    check_groups(strategy, RULE)
    assert not {id(p) for p in frozen.parameters()} & {id(p) for p in strategy.optimizer.state}
    assert torch.equal(parameter_vector(frozen), held)
    frozen.requires_grad_(True)
    strategy.train(third)
    check_groups(strategy, RULE)
    assert not torch.equal(parameter_vector(frozen), held)
    assert strategy.optimizer.state[other]["step"].item() == 3 * steps
    assert strategy.optimizer.state[next(frozen.parameters())]["step"].item() == steps


def test_what_fails_between_the_two_events_loses_no_group():
    rule, model = partial(parameter_groups, weight_decay=0.1), nn.Sequential(nn.Linear(3, 2))
    optimizer = torch.optim.SGD(rule(model), lr=1.0)
    optimizer.param_groups[1]["lr"] = 0.5
    strategy = SimpleNamespace(model=model, optimizer=optimizer)
    plugin = ParameterGroupsPlugin(rule)
    plugin.after_train_dataset_adaptation(strategy)
    plugin.after_train_dataset_adaptation(strategy)  # the first time, the loader could not be made
    plugin.before_training_exp(strategy)
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 0.5]


def test_a_schedulers_rates_stay():
    model = make_model()
    optimizer = adamw(WITH_HEAD)(model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    plugins = [
        ParameterGroupsPlugin(WITH_HEAD),
        Call(after_training_exp=lambda _: scheduler.step()),
    ]
    strategy = make_strategy(model, plugins, optimizer=lambda _: optimizer)
    train(strategy, make_stream().train_stream)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3 / 8] * 2 + [0.01 / 8] * 2


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_copies_go_on_alike(copied):
    stream = make_stream().train_stream
    strategy = make_strategy(make_model(), [ParameterGroupsPlugin(RULE)], optimizer=adamw(RULE))
    train(strategy, stream[:1])
    strategy.dataloader = None
    other = copied(strategy)
    for each in (strategy, other):
        train(each, stream, first=1)
    assert torch.equal(parameter_vector(other.model), parameter_vector(strategy.model))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight_decay": -1}, "weight_decay must be a finite number >= 0, got -1"),
        ({"weight_decay": 0, "head_learning_rate": -1}, "head_learning_rate must be a finite"),
        ({"weight_decay": 0, "no_decay": "bias"}, "no_decay must be a list of words, got 'bias'"),
        (
            {"weight_decay": 0, "head_learning_rate": 1, "heads": "clasifier"},
            "heads: 'clasifier' matches no module; did you mean 'classifier'",
        ),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        parameter_groups(make_model(), **arguments)


def test_rules_are_checked():
    with pytest.raises(ValueError, match=r"rule must be a function .* got \[\]"):
        ParameterGroupsPlugin([])
    plugin = ParameterGroupsPlugin(lambda model: [{"params": list(model.parameters())}])
    strategy = make_strategy(make_model(), [plugin], strategy=Naive)
    with pytest.raises(ValueError, match=r"each group of a rule needs a name of its own, got \[No"):
        train(strategy, make_stream().train_stream)
