"""Tiny models that answer in words, from configurations, with a tokenizer of whole words."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

from avalanche_mgem.streams.text import TextSample, TextTask, text_stream

SPECIAL = ("<pad>", "</s>", "<unk>", "<mask>", "<s>")
QUESTION = "Which label fits the text ? Options : , Answer"
WORDS = "red green blue cat dog cow big small one two three four"
VOCABULARY = [*SPECIAL, *dict.fromkeys(f"{QUESTION} {WORDS}".split())]
N_WORDS = len(VOCABULARY)
COLOURS, ANIMALS = ("red", "green"), ("cat", "big dog")


def make_tokenizer(**without):
    """Words are ids; it adds no special token by itself."""
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(VOCABULARY)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>", "bos": "<s>"}
    tokens = {f"{name}_token": token for name, token in names.items()} | without
    names_given = ["input_ids", "attention_mask"]  # before transformers 5 token types are too
    return PreTrainedTokenizerFast(tokenizer_object=words, model_input_names=names_given, **tokens)


def make_t5(vocabulary=N_WORDS, seed=0):
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=vocabulary,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    return T5ForConditionalGeneration(config)


def make_llama(vocabulary=N_WORDS, seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config)


def make_roberta(seed=0):
    torch.manual_seed(seed)
    config = RobertaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=40,
        pad_token_id=0,
    )
    return RobertaForMaskedLM(config)


def make_task(name="colours", words=COLOURS, n_train=24, n_test=8):
    """A task whose texts name their label, between fillers."""

    def samples(count):
        fillers = ["one", "two", "three", "four"]
        return [
            TextSample(" ".join([*fillers[: i % 4], words[i % 2], *fillers[: i % 3]]), i % 2)
            for i in range(count)
        ]

    return TextTask(name, words, samples(n_train), samples(n_test))


def make_stream(form, tasks=None, **settings):
    tasks = tasks or [make_task(), make_task("animals", ANIMALS)]
    return text_stream(tasks, tokenizer=make_tokenizer(), form=form, **settings)


def batch_of(stream, size=5, experience=0, part="test"):
    """One batch of an experience, of texts of different lengths."""
    data = getattr(stream, f"{part}_stream")[experience].dataset
    return data.collate_fn([data[i] for i in range(size)])
