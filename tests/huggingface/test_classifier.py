"""Text classifiers: the same logits whatever the padding, and heads that train under Avalanche."""

import copy
import inspect
import pickle
import sys

import peft
import pytest
import torch
import transformers
from avalanche.training import supervised
from text_cases import VOCABULARY, WordTokenizer, make_task
from tiny import make_strategy, snapshot, train
from torch import nn

from avalanche_mgem import MGEM
from avalanche_mgem.huggingface import (
    check_tokenizer,
    load_pretrained,
    load_tokenizer,
    text_classifier,
)
from avalanche_mgem.model.layers import find_gated_layers
from avalanche_mgem.streams.text import text_stream

SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "pad_token_id": 0,
}
T5 = {"vocab_size": VOCABULARY, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1}
TINY = {
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**SMALL)),
    "roberta": lambda: transformers.RobertaForMaskedLM(
        transformers.RobertaConfig(**SMALL, type_vocab_size=1)
    ),
    "distilbert": lambda: transformers.DistilBertModel(
        transformers.DistilBertConfig(
            vocab_size=VOCABULARY, dim=8, n_layers=1, n_heads=2, hidden_dim=16
        )
    ),
    "llama": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SMALL, num_key_value_heads=2)
    ),
    "gpt2": lambda: transformers.GPT2Model(
        transformers.GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=8,
            n_layer=1,
            n_head=2,
            bos_token_id=1,
            eos_token_id=1,
        )
    ),
    "opt": lambda: transformers.OPTModel(
        transformers.OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            ffn_dim=16,
            word_embed_proj_dim=6,
            max_position_embeddings=30,
            pad_token_id=0,
        )
    ),
    "t5": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(**T5, num_heads=2, decoder_start_token_id=0)
    ),
}
TASKS = {"a": ("red", "green", "blue"), "b": ("cat", "dog"), "c": ("sun", "moon", "sky", "sea")}


def tiny(name="bert"):
    torch.manual_seed(3)
    return TINY[name]()


def make_stream(task_labels=True):
    tasks = [make_task(name, words, n_train=24) for name, words in TASKS.items()]
    return text_stream(tasks, tokenizer=WordTokenizer(), task_labels=task_labels)


def texts(left=0, right=0):
    """Two texts of four and of two tokens, padded on one side, and further."""
    ids, mask = torch.zeros(2, 4 + left + right).long(), torch.zeros(2, 4 + left + right).long()
    for row, words in enumerate(([5, 6, 7, 8], [9, 10])):
        start = left if right else left + 4 - len(words)
        ids[row, start : start + len(words)] = torch.tensor(words)
        mask[row, start : start + len(words)] = 1
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("name", list(TINY))
@pytest.mark.parametrize("pooling", ["auto", "mean", "first", "last"])
def test_padding_does_not_change_logits(name, pooling):
    model = text_classifier(tiny(name), heads="single", n_classes=3, pooling=pooling).eval()
    alone = torch.cat(
        [model({"input_ids": torch.tensor([words])}) for words in ([5, 6, 7, 8], [9, 10])]
    )
    # Before transformers 5 DistilBERT takes no positions, so that its padding is on the right.
    taken = inspect.signature(type(model.encoder).forward).parameters
    on_the_left = name != "distilbert" or "position_ids" in taken
    left = (texts(left=0), texts(left=3)) if on_the_left else ()
    for padded in (texts(right=1), texts(right=5), *left):
        types = torch.zeros_like(padded["input_ids"])
        for features in (padded, padded | {"token_type_ids": types, "other": types}):
            torch.testing.assert_close(model(features), alone, atol=1e-6, rtol=1e-5)


FUNNEL = {"vocab_size": VOCABULARY, "d_model": 8, "n_head": 2, "d_head": 4, "d_inner": 16}


@pytest.mark.parametrize(
    "kind", ["FunnelModel", "FunnelForMaskedLM", "FunnelForTokenClassification"]
)
def test_parts_called_encoder_and_decoder_do_not_make_an_encoder_decoder(kind):
    config = transformers.FunnelConfig(**FUNNEL, block_sizes=[1, 1])
    body = getattr(transformers, kind)(config)
    model = text_classifier(body, heads="single", n_classes=3).eval()
    assert model.encoder is body.base_model
    assert text_classifier(model.encoder, heads="growing").encoder is model.encoder
    assert model(texts(right=2)).shape == (2, 3)
    states = body.base_model.eval()(**texts(right=2)).last_hidden_state
    first = text_classifier(body, heads="single", n_classes=3, pooling="first").eval()
    torch.testing.assert_close(first(texts(right=2)), first.classifier(states[:, 0]))


@pytest.mark.parametrize("kind", ["FunnelBaseModel", "FunnelForSequenceClassification"])
def test_an_encoder_with_fewer_states_than_tokens_is_refused(kind):
    config = transformers.FunnelConfig(**FUNNEL, block_sizes=[1, 1])
    model = text_classifier(getattr(transformers, kind)(config))
    with pytest.raises(
        ValueError, match=r"states of shape \(2, 3, 8\) for tokens of shape \(2, 6\)"
    ):
        model.pooled(texts(right=2))


KIN_OF_BART = {
    f"{part}_{what}": 2
    for part in ("encoder", "decoder")
    for what in ("layers", "attention_heads", "ffn_dim")
}
KIN_OF_BART |= {"vocab_size": VOCABULARY, "d_model": 8, "max_position_embeddings": 30}
KIN_OF_T5 = {**T5, "num_heads": 2, "decoder_start_token_id": 0}


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        *((name, KIN_OF_BART) for name in ("Bart", "MBart", "Blenderbot", "M2M100")),
        *((name, KIN_OF_T5) for name in ("T5", "UMT5", "LongT5")),
    ],
)
def test_of_an_encoder_decoder_the_encoder_is_taken(name, sizes):
    config = getattr(transformers, f"{name}Config")(**sizes, pad_token_id=0)
    body = getattr(transformers, f"{name}Model")(config)
    model = text_classifier(body, heads="single", n_classes=3).eval()
    assert model.encoder is body.get_encoder()
    torch.testing.assert_close(model(texts(right=1)), model(texts(right=3)), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("name", "place"), [("bert", None), ("llama", -1), ("t5", None)])
def test_logits_are_the_head_of_the_pooled_states(name, place):
    body = tiny(name)
    model = text_classifier(body, heads="single", n_classes=3).eval()
    ids = torch.tensor([[5, 6, 7]])
    encoder = body.get_encoder() if name == "t5" else body.base_model
    states = encoder(input_ids=ids).last_hidden_state
    expected = states.mean(1) if place is None else states[:, place]
    torch.testing.assert_close(model({"input_ids": ids}), model.classifier(expected))


def test_the_pooler_is_used_or_taken_off():
    body = tiny("bert")
    ids = torch.tensor([[5, 6, 7]])
    pooled = body.eval()(ids).pooler_output
    model = text_classifier(body, heads="single", n_classes=3, pooling="pooler").eval()
    torch.testing.assert_close(model({"input_ids": ids}), model.classifier(pooled))
    names = [name for name, _ in text_classifier(tiny("bert")).named_parameters()]
    assert not [name for name in names if "pooler" in name]


# peft asks transformers for what it now calls by another name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["roberta", "llama", "distilbert"])
def test_adapters_of_peft_stay(name):
    body, ids = tiny(name), torch.tensor([[5, 6, 7]])
    adapted = peft.get_peft_model(
        body, peft.LoraConfig(target_modules="all-linear", init_lora_weights=False)
    )
    model = text_classifier(adapted, heads="single", n_classes=3).eval()
    states = body.base_model(input_ids=ids).last_hidden_state
    pooled = states[:, -1] if name == "llama" else states.mean(1)
    torch.testing.assert_close(model({"input_ids": ids}), model.classifier(pooled))
    trained_names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert all("lora" in name or name.startswith("classifier") for name in trained_names)


def test_the_heads_are_not_gated():
    names = [layer.name for layer in find_gated_layers(text_classifier(tiny()))]
    assert len(names) == 6
    assert all(name.startswith("encoder.") for name in names)


@pytest.mark.parametrize("name", list(TINY))
def test_every_parameter_has_a_gradient(name):
    model = text_classifier(tiny(name), heads="single", n_classes=3)
    model(texts(right=1)).logsumexp(1).sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


def test_dropout_is_the_configurations_or_the_one_given():
    bert = transformers.BertConfig(**SMALL, hidden_dropout_prob=0.3)
    assert text_classifier(transformers.BertModel(bert)).dropout.p == 0.3
    bert.classifier_dropout = 0.2
    assert text_classifier(transformers.BertModel(bert)).dropout.p == 0.2
    assert text_classifier(tiny("llama")).dropout.p == 0
    assert text_classifier(tiny(), dropout=0.4).dropout.p == 0.4


BASELINES = {
    "Naive": {},
    "Replay": {"mem_size": 12},
    "EWC": {"ewc_lambda": 1.0},
    "LwF": {"alpha": 1.0, "temperature": 2.0},
}


@pytest.mark.cover
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")
@pytest.mark.parametrize("heads", ["multi", "growing", "single"])
@pytest.mark.parametrize("baseline", list(BASELINES))
def test_heads_train_under_avalanche(baseline, heads):
    stream = make_stream(task_labels=heads == "multi")
    torch.manual_seed(0)
    n_classes = {"single": 9}.get(heads)
    model = text_classifier(tiny("roberta"), heads=heads, n_classes=n_classes)
    before = model.encoder.embeddings.word_embeddings.weight.detach().clone()
    strategy = make_strategy(
        model,
        strategy=getattr(supervised, baseline),
        optimizer=lambda model: torch.optim.AdamW(model.parameters(), lr=0.01),
        eval_mb_size=8,
        **BASELINES[baseline],
    )
    train(strategy, stream.train_stream)
    strategy.eval(stream.test_stream)
    assert not torch.equal(model.encoder.embeddings.word_embeddings.weight, before)
    assert bool(torch.stack([p.isfinite().all() for p in model.parameters()]).all())


def test_a_head_for_each_task_masks_what_it_lacks():
    model = text_classifier(tiny(), dropout=0)
    strategy = make_strategy(model)
    train(strategy, make_stream().train_stream)
    model.eval()
    features = {name: value.repeat(3, 1)[:3] for name, value in texts(right=1).items()}
    together = model(features, torch.tensor([0, 1, 2]))
    assert together.shape == (3, 4)
    assert (together > -1000).sum(1).tolist() == [3, 2, 4]
    every = model(features, None)
    for task, outputs in every.items():
        torch.testing.assert_close(together[task, : outputs.shape[1]], outputs[task])
    with pytest.raises(ValueError, match="no head for the task label 7: known are 0, 1, 2"):
        model(features, torch.tensor([0, 1, 7]))


def test_our_plugin_trains_it():
    model = text_classifier(tiny())
    strategy = make_strategy(model, strategy=MGEM, patterns_per_experience=6)
    train(strategy, make_stream().train_stream)
    assert strategy.plugins[0].last_projection is not None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("heads", ["multi", "growing"])
def test_copies_give_the_same(copied, heads):
    model = text_classifier(tiny(), heads=heads)
    task_labels = heads == "multi"
    train(make_strategy(model), make_stream(task_labels).train_stream[:2])
    model.eval()
    tasks = (torch.tensor([0, 1]),) if task_labels else ()
    assert torch.equal(copied(model)(texts(right=1), *tasks), model(texts(right=1), *tasks))


def test_half_precision_has_heads_in_single():
    model = text_classifier(tiny().to(torch.bfloat16), dropout=0)
    assert model(texts(right=1), torch.tensor([0, 0])).dtype == torch.float32
    model = text_classifier(tiny(), dropout=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(texts(right=1), torch.tensor([0, 0])).shape == (2, 2)


@pytest.mark.parametrize("name", ["bert", "t5"])
def test_a_folder_is_loaded(tmp_path, name):
    body = tiny(name).eval()
    body.save_pretrained(tmp_path)
    loaded = text_classifier(str(tmp_path), heads="single", n_classes=3).eval()
    torch.manual_seed(0)
    ours = text_classifier(snapshot(body), heads="single", n_classes=3).eval()
    ours.classifier = loaded.classifier
    torch.testing.assert_close(loaded(texts(right=1)), ours(texts(right=1)))
    assert transformers.utils.logging.get_verbosity() != transformers.logging.ERROR
    names = [name for name, _ in loaded.named_parameters()]
    assert not [name for name in names if "decoder" in name or "pooler" in name]


def test_weights_that_are_not_there_are_said(tmp_path):
    tiny("bert").save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"holds no weights for classifier.bias, classifier.weigh"):
        load_pretrained(tmp_path, "AutoModelForSequenceClassification")


def test_what_cannot_be_loaded_names_the_argument(tmp_path):
    with pytest.raises(ValueError, match=r"model='.*nowhere' is no folder"):
        text_classifier(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"model='.*' is a folder that AutoConfig cannot load"):
        text_classifier(str(tmp_path))
    with pytest.raises(ValueError, match=r"tokenizer='.*nowhere' is no folder"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="model must be a name on the hub, a local folder or"):
        text_classifier(nn.Linear(2, 2))


def test_without_transformers_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"transformers.*pip install 'avalanche-mgem\[hf\]'"):
        text_classifier("bert-base-uncased")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": "multy"}, "heads: unknown 'multy'; did you mean 'multi'"),
        ({"pooling": "men"}, "pooling: unknown 'men'; did you mean 'mean'"),
        ({"heads": "single"}, "heads='single' needs n_classes"),
        ({"n_classes": 0}, "n_classes must be a whole number >= 1, got 0"),
        ({"dropout": 1.0}, "dropout must be below 1, got 1.0"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        text_classifier(tiny(), **arguments)


def test_what_a_model_lacks_is_said():
    with pytest.raises(ValueError, match="pooling='pooler': LlamaModel has no pooler"):
        text_classifier(tiny("llama"), pooling="pooler")
    with pytest.raises(ValueError, match="features must be a dict with input_ids, got Tensor"):
        text_classifier(tiny(), heads="growing")(torch.zeros(2, 3))


def fitting(**changes):
    tokenizer = WordTokenizer()
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return tokenizer


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", {"vocab_size": 60}, "'words' has ids up to 59, but the model has embeddings for"),
        ("llama", {"pad_token_id": None}, "no padding token: set one, such as tokenizer.pad_token"),
        ("roberta", {"pad_token_id": 1}, "pads with the id 1, but the model numbers its positions"),
    ],
)
def test_a_tokenizer_that_does_not_fit(name, changes, message):
    check_tokenizer(text_classifier(tiny(name)), fitting())
    check_tokenizer(tiny(name), fitting(), max_length=500)
    with pytest.raises(ValueError, match=message):
        check_tokenizer(text_classifier(tiny(name)), fitting(**changes))


@pytest.mark.parametrize(
    ("name", "most"), [("bert", 512), ("roberta", 511), ("gpt2", 1024), ("opt", 30)]
)
def test_texts_longer_than_the_positions(name, most):
    check_tokenizer(tiny(name), fitting(), max_length=most)
    with pytest.raises(ValueError, match=f"max_length={most + 1}: the model has positions for"):
        check_tokenizer(tiny(name), fitting(), max_length=most + 1)
