"""Continual LoRA as plugins: what trains and what does not move, by the bit."""

import copy
import pickle

import pytest
import tiny
import torch
import transformers
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.models import avalanche_forward
from avalanche.training.plugins import EvaluationPlugin, LwFPlugin, ReplayPlugin
from text_cases import VOCABULARY, WordTokenizer, make_task
from tiny import Call, domain_stream, make_strategy, train
from torch import nn

from avalanche_mgem import MIGUPlugin
from avalanche_mgem.huggingface import (
    IncLoRAPlugin,
    LoRAPlugin,
    OLoRAPlugin,
    OrthogonalityMetric,
    ParameterGroupsPlugin,
    orthogonality_metrics,
    parameter_groups,
    text_classifier,
)
from avalanche_mgem.huggingface.adapters import adapter_names, lora_layers
from avalanche_mgem.huggingface.orthogonality import adapter_norms, orthogonality_penalty
from avalanche_mgem.model.randomness import fingerprint
from avalanche_mgem.streams.text import text_stream

TASKS = {"colours": ("red", "green"), "sizes": ("big", "small"), "moods": ("glad", "sad")}
PLUGINS = [LoRAPlugin, IncLoRAPlugin, OLoRAPlugin]
WITH_A_TASK_EACH = [IncLoRAPlugin, OLoRAPlugin]


def make_stream():
    tasks = [make_task(name, words, n_train=16, n_test=6) for name, words in TASKS.items()]
    return text_stream(tasks, tokenizer=WordTokenizer(), task_labels=True)


STREAM = make_stream()


def make_model(heads="multi"):
    torch.manual_seed(7)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    n_classes = 2 if heads == "single" else None
    return text_classifier(transformers.BertModel(config), heads=heads, n_classes=n_classes)


def adamw(model, lr=0.02):
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.1)


def run(*plugins, stream=STREAM.train_stream, model=None, optimizer=adamw, **options):
    model = make_model() if model is None else model
    return train(make_strategy(model, plugins, optimizer=optimizer, **options), stream)


def state(model, *parts):
    """The parameters whose names have one of `parts`, under the names of a model without LoRA."""
    return {
        name.replace(".base_layer", ""): parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if any(part in name for part in parts or [""])
    }


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def logits(model, batch):
    with torch.no_grad():
        return avalanche_forward(model.eval(), batch[0], batch[2])


def a_batch(task=0):
    data = STREAM.test_stream[task].dataset
    return data.collate_fn([data[i] for i in range(4)])


@pytest.mark.parametrize("plugin", PLUGINS)
def test_only_adapters_and_heads_move(plugin):
    base, model = state(make_model(), "encoder."), make_model()
    first_head = state(model, "classifier.")
    run(plugin(rank=2), model=model)
    after = state(model, "encoder.")
    assert same(base, {name: after[name] for name in base})
    names = {"lora"} if plugin is LoRAPlugin else {"task0", "task1", "task2"}
    assert set(adapter_names(model)) == names
    for layer in lora_layers(model).values():
        assert all(layer.lora_B[name].weight.abs().sum() > 0 for name in names)
    heads = state(model, "classifier.")
    assert not any(torch.equal(heads[name], first_head[name]) for name in first_head)
    assert all(torch.unique(heads[n]).numel() > 1 for n in heads if n.endswith("weight"))


@pytest.mark.parametrize("plugin", PLUGINS)
def test_an_untrained_adapter_says_nothing(plugin):
    plain, model = make_model("single"), make_model("single")
    seen = []
    look = Call(before_training_exp=lambda s: seen.append(logits(s.model, a_batch())))
    run(plugin(), look, model=model, stream=STREAM.train_stream[:1])
    assert adapter_names(model)
    assert torch.equal(seen[0], logits(plain, a_batch()))


@pytest.mark.parametrize("plugin", WITH_A_TASK_EACH)
def test_earlier_adapters_stay_and_still_count(plugin):
    strategy = run(plugin(rank=2), stream=STREAM.train_stream[:1])
    first = state(strategy.model, ".task0")
    assert first
    train(strategy, STREAM.train_stream, first=1)
    model = strategy.model
    assert same(first, state(model, ".task0"))
    grads = {n for n, p in model.named_parameters() if "lora_" in n and p.requires_grad}
    assert grads == {n for n, _ in model.named_parameters() if ".task2" in n}
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert not any(p in strategy.optimizer.state for p in frozen)
    expected = logits(model, a_batch())
    for name in adapter_names(model):
        without = copy.deepcopy(model)
        for layer in lora_layers(without).values():
            nn.init.zeros_(layer.lora_B[name].weight)
        assert not torch.allclose(expected, logits(without, a_batch()))


def test_every_adapter_begins_elsewhere_and_a_seed_fixes_all():
    def first_matrices(seed):
        model = run(IncLoRAPlugin(seed=seed), optimizer=lambda m: adamw(m, lr=0.0)).model
        layer = next(iter(lora_layers(model).values()))
        return [layer.lora_A[name].weight for name in adapter_names(model)]

    a, b, other = first_matrices(3), first_matrices(3), first_matrices(4)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not any(torch.equal(x, y) for x, y in zip(a, other, strict=True))
    assert not torch.equal(a[0], a[1])


@pytest.mark.parametrize("plugin", PLUGINS)
def test_the_global_random_state_is_left_alone(plugin):
    strategy = make_strategy(make_model(), [made := plugin()])
    before = fingerprint(torch.device("cpu"))
    for experience in STREAM.train_stream[:2]:
        strategy.experience = experience
        made.before_train_dataset_adaptation(strategy)
        made.before_training_exp(strategy)
    assert fingerprint(torch.device("cpu")) == before


@pytest.mark.parametrize("penalty", ["absolute", "squared"])
def test_the_penalty_is_that_of_the_formula(penalty):
    """Its gradient is that of the loss with it minus that without, and goes to the new A only."""
    seen = []

    def measure(strategy):
        model = strategy.model
        layers = lora_layers(model).values()
        pairs = [
            (layer.lora_A[new].weight, layer.lora_A[old].weight)
            for layer in layers
            for new in ["task2"]
            for old in ["task0", "task1"]
        ]
        by_hand = torch.zeros(())
        for a, b in pairs:
            for row in a:
                for other in b:
                    product = (row * other).sum()
                    by_hand = by_hand + (product.abs() if penalty == "absolute" else product**2)
        new = {n: p for n, p in model.named_parameters() if p.requires_grad}
        loss = strategy._criterion(strategy.mb_output, strategy.mb_y) + 0.3 * by_hand
        gradients = torch.autograd.grad(loss, list(new.values()), retain_graph=True)
        seen.append((by_hand.detach(), dict(zip(new, gradients, strict=True))))

    def compare(strategy):
        by_hand, gradients = seen[-1]
        torch.testing.assert_close(plugin.last_penalty, by_hand)
        parameters = dict(strategy.model.named_parameters())
        for name, gradient in gradients.items():
            torch.testing.assert_close(parameters[name].grad, gradient)
        assert all(p.grad is None for p in parameters.values() if not p.requires_grad)

    plugin = OLoRAPlugin(0.3, rank=2, dropout=0.0, penalty=penalty)
    single = make_model("single")
    strategy = run(plugin, model=single, stream=STREAM.train_stream[:2])
    looker = Call(after_forward=measure, after_backward=compare)
    strategy.plugins.insert(1, looker)
    train(strategy, STREAM.train_stream, first=2)
    assert len(seen) == 2


@pytest.mark.parametrize("n_earlier", [0, 1, 2])
def test_the_norms_are_those_of_the_formula(n_earlier):
    """Not squared, of the newest A and B alone, in the first task too."""

    def slow(model):
        total = torch.zeros(())
        for name, parameter in model.named_parameters():
            if f".task{n_earlier}." in name:
                total = total + sum(x * x for x in parameter.flatten()) ** 0.5
        return total

    seen = []

    def measure(strategy):
        new = {n: p for n, p in strategy.model.named_parameters() if p.requires_grad}
        plain = strategy._criterion(strategy.mb_output, strategy.mb_y)
        loss = plain + 0.3 * slow(strategy.model)
        if n_earlier:
            loss = loss + 0.2 * orthogonality_penalty(strategy.model)
        gradients = torch.autograd.grad(loss, list(new.values()), retain_graph=True)
        seen.append((loss.detach(), dict(zip(new, gradients, strict=True))))

    def compare(strategy):
        loss, gradients = seen[-1]
        torch.testing.assert_close(strategy.loss.detach().sum(), loss)
        parameters = dict(strategy.model.named_parameters())
        for name, gradient in gradients.items():
            torch.testing.assert_close(parameters[name].grad, gradient)

    plugin = OLoRAPlugin(0.2, rank=2, dropout=0.0, norm_penalty=0.3)
    strategy = run(plugin, model=make_model("single"), stream=STREAM.train_stream[:n_earlier])
    # B begins at zero, where the slow norm has no slope.
    first = Call(before_training_iteration=start_b)
    looker = Call(after_forward=measure, after_backward=compare)
    strategy.plugins[1:1] = [first, looker]
    train(strategy, STREAM.train_stream[: n_earlier + 1], first=n_earlier)
    assert len(seen) == 2


def start_b(strategy):
    newest = adapter_names(strategy.model)[-1]
    for layer in lora_layers(strategy.model).values():
        if not layer.lora_B[newest].weight.any():
            nn.init.normal_(layer.lora_B[newest].weight)


def test_the_norms_shrink_the_adapter_and_are_no_weight_decay():
    def size(norm_penalty):
        sgd = lambda m: torch.optim.SGD(m.parameters(), 0.05)  # noqa: E731
        plugin = OLoRAPlugin(0, rank=2, seed=0, norm_penalty=norm_penalty)
        stream = STREAM.train_stream[:1]
        model = run(plugin, stream=stream, optimizer=sgd, train_epochs=10).model
        return float(adapter_norms(model).detach())

    assert adapter_norms(make_model()) is None
    sizes = [size(penalty) for penalty in (0.0, 0.1, 0.3)]
    assert sizes[0] > sizes[1] > sizes[2]


@pytest.mark.parametrize("plugin", [OLoRAPlugin(0.5), OLoRAPlugin(0.5, norm_penalty=0)])
def test_without_norms_nothing_changes(plugin):
    a = run(copy.deepcopy(plugin)).model
    del plugin.norm_penalty  # as a plugin of a checkpoint from before it was there
    assert same(state(a), state(run(plugin).model))


def test_the_penalty_keeps_adapters_apart():
    def overlap(weight):
        plugin = OLoRAPlugin(weight, rank=2, seed=0)
        run(plugin, stream=STREAM.train_stream[:2], train_epochs=10)
        return float(plugin.last_penalty)

    assert overlap(1.0) < 0.2 * overlap(0.0)


def test_without_weight_it_is_inclora():
    a = run(IncLoRAPlugin(seed=1)).model
    b = run(OLoRAPlugin(0, seed=1)).model
    assert same(state(a), state(b))


def test_the_penalty_is_logged():
    metric = OrthogonalityMetric(minibatch=True)
    plugin, penalties = OLoRAPlugin(rank=2), []
    strategy = make_strategy(make_model(), [plugin], optimizer=adamw)
    strategy.plugins.append(
        Call(after_training_iteration=lambda s: penalties.append(plugin.last_penalty))
    )
    evaluator = EvaluationPlugin(metric)
    strategy.plugins.append(evaluator)
    train(strategy, STREAM.train_stream)
    metrics = evaluator.get_all_metrics()
    _, values = metrics["Orthogonality_Penalty/train_phase/train_stream"]
    assert len(values) == 2  # the first task has none
    assert all(isinstance(value, float) for value in values)
    assert penalties[:2] == [None, None]
    last = [float(penalty) for penalty in penalties[-2:]]
    assert values[-1] == pytest.approx(sum(last) / 2)
    assert metrics["Orthogonality_Penalty_MB/train_phase/train_stream"][1][-2:] == last
    assert [type(each) for each in orthogonality_metrics()] == [OrthogonalityMetric]


@pytest.mark.parametrize("plugin", PLUGINS)
def test_training_again_adds_nothing_of_the_same_task(plugin):
    """Evaluation before training, a deep copy and a pickled strategy all train on alike."""
    strategy = make_strategy(make_model(), [plugin(rank=2, seed=0)], optimizer=adamw)
    strategy.eval(STREAM.test_stream)
    assert adapter_names(strategy.model) == []
    train(strategy, STREAM.train_stream[:1])
    assert len(adapter_names(strategy.model)) == 1
    model = pickle.loads(pickle.dumps(strategy.model))
    assert torch.equal(logits(model, a_batch()), logits(strategy.model, a_batch()))
    copied = copy.deepcopy(strategy)
    for each in (strategy, copied):
        train(each, STREAM.train_stream[1:])
        each.eval(STREAM.test_stream)
    assert len(adapter_names(copied.model)) == (1 if plugin is LoRAPlugin else 3)
    assert same(state(strategy.model), state(copied.model))
    resumed = run(plugin(rank=2, seed=0), model=model, stream=STREAM.train_stream[1:])
    assert adapter_names(resumed.model) == adapter_names(copied.model)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_beside_other_plugins(plugin):
    rule = parameter_groups
    groups = ParameterGroupsPlugin(lambda model: rule(model, weight_decay=0.1))
    beside = [groups, ReplayPlugin(mem_size=8), LwFPlugin(0.1, 1.0), migu := MIGUPlugin(0.5)]
    base, model = state(make_model(), "encoder."), make_model()
    run(
        plugin(rank=2),
        *beside,
        model=model,
        optimizer=lambda m: torch.optim.AdamW(rule(m, weight_decay=0.1), lr=0.02),
    )
    after = state(model, "encoder.")
    assert same(base, {name: after[name] for name in base})
    newest = adapter_names(model)[-1]
    assert {name.rpartition(".")[2] for name in migu.last_mask if "lora_A" in name} == {newest}
    assert {name for name in migu.last_mask if "lora_A" not in name} == set(lora_layers(model))


def test_groups_of_the_optimiser_take_adapters_in():
    """Avalanche itself does not know where to put what is beside a weight and a bias apart."""

    def optimizer(model):
        named = dict(model.named_parameters())
        groups = [[p for n, p in named.items() if ("bias" in n) == bias] for bias in (True, False)]
        return torch.optim.AdamW([{"params": group} for group in groups])

    strategy = make_strategy(
        make_model("single"), [LoRAPlugin(target_modules="all-linear")], optimizer=optimizer
    )
    train(strategy, STREAM.train_stream[:1])
    weights = {id(p) for p in strategy.optimizer.param_groups[1]["params"]}
    adapters = [p for n, p in strategy.model.named_parameters() if "lora_" in n]
    assert len(adapters) == 12
    assert all(id(p) in weights for p in adapters)


def test_heads_can_stay():
    model = make_model()
    run(LoRAPlugin(train_heads=False), model=model)
    assert all("lora_" in n for n, p in model.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_online_streams(plugin):
    """And a model that is none of transformers."""

    def parts(known):
        stream = domain_stream().train_stream
        return split_online_stream(stream, 8, access_task_boundaries=known)

    model = run(plugin(), stream=parts(True), model=tiny.make_model()).model
    assert len(adapter_names(model)) == (1 if plugin is LoRAPlugin else 3)
    if plugin is LoRAPlugin:
        run(plugin(), stream=parts(False), model=tiny.make_model())
    else:
        with pytest.raises(ValueError, match=f"{plugin.__name__}.*where tasks start.*LoRAPlugin"):
            run(plugin(), stream=parts(False), model=tiny.make_model())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"rank": 0}, "rank"),
        ({"alpha": 0}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": -0.1}, "dropout"),
        ({"train_heads": "no"}, "train_heads"),
        ({"seed": -1}, "seed"),
        ({"orthogonality": -1}, "orthogonality"),
        ({"penalty": "square"}, "penalty.*squared"),
        ({"norm_penalty": -0.1}, "norm_penalty"),
        ({"norm_penalty": float("inf")}, "norm_penalty"),
    ],
)
def test_bad_arguments_are_named(arguments, said):
    with pytest.raises(ValueError, match=said):
        OLoRAPlugin(**arguments)


def test_bad_models_are_refused():
    with pytest.raises(ValueError, match=r"'querry' matches no layer; did you mean 'query'"):
        run(LoRAPlugin(target_modules=["querry"]))
    model = run(LoRAPlugin(), stream=STREAM.train_stream[:1]).model
    with pytest.raises(ValueError, match=r"adapters already, lora, which IncLoRAPlugin did not"):
        run(IncLoRAPlugin(), model=model)
    for layer in lora_layers(model).values():
        layer.merge()
    with pytest.raises(ValueError, match="merged"):
        run(LoRAPlugin(), model=model)


def test_without_peft_the_install_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ImportError, match=r"pip install 'avalanche-mgem\[hf\]'"):
        LoRAPlugin()


@pytest.mark.parametrize("plugin", PLUGINS)
def test_it_can_be_taken_out_again(plugin):
    """What is left are the adapters, which train on like any other part of the model."""
    strategy = run(made := plugin(), stream=STREAM.train_stream[:2])
    before = state(strategy.model)
    strategy.plugins.remove(made)
    assert not any(isinstance(value, nn.Module) for value in vars(made).values())
    train(strategy, STREAM.train_stream, first=2)
    after = state(strategy.model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[-2] for name in moved} == {adapter_names(strategy.model)[-1]}
