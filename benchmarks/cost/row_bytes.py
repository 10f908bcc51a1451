"""How long a row of mGEM's memory is for usual models, whole and with LoRA: a table.

    python benchmarks/cost/row_bytes.py

A row has a number for each parameter that trains, in float32: 4 bytes, and 2 with
memory_precision="bf16". Models are made from their published configurations without memory for
weights, and LoRA is put where peft puts it for the kind of model.
"""

import peft
import torch
import transformers

# The class of the model, and of its configuration what differs from that class's default.
MODELS = {
    "all-MiniLM-L6-v2": (
        "BertModel",
        {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536},
    ),
    "BERT-base": ("BertModel", {}),
    "RoBERTa-large": (
        "RobertaModel",
        {
            "vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1,
            "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
            "intermediate_size": 4096,
        },
    ),
    "GPT-2": ("GPT2LMHeadModel", {}),
    "T5-large": (
        "T5ForConditionalGeneration",
        {"d_model": 1024, "d_ff": 4096, "num_layers": 24, "num_heads": 16},
    ),
    "Qwen2.5-0.5B": (
        "Qwen2ForCausalLM",
        {
            "vocab_size": 151936, "hidden_size": 896, "num_hidden_layers": 24,
            "num_attention_heads": 14, "num_key_value_heads": 2, "intermediate_size": 4864,
            "tie_word_embeddings": True,
        },
    ),
    "Llama-3.2-1B": (
        "LlamaForCausalLM",
        {
            "vocab_size": 128256, "hidden_size": 2048, "num_hidden_layers": 16,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
            "intermediate_size": 8192, "tie_word_embeddings": True,
        },
    ),
    "Llama-3.1-8B": (
        "LlamaForCausalLM",
        {
            "vocab_size": 128256, "hidden_size": 4096, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
        },
    ),
}  # fmt: skip
RANKS = (8, 64)


def trained(name: str, rank: int | None) -> int:
    """Return how many parameters train; rank: of LoRA, None: all of the model's."""
    kind, settings = MODELS[name]
    model_class = getattr(transformers, kind)
    with torch.device("meta"):
        model = model_class(model_class.config_class(**settings))
        if rank is not None:
            model = peft.get_peft_model(model, peft.LoraConfig(r=rank))
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def size(numbers: int) -> str:
    """Return the length of a row and its bytes, in words."""
    length = f"{numbers / 1e9:.1f} billion" if numbers >= 1e9 else f"{numbers / 1e6:.2f} million"
    taken = 4 * numbers / 1e6
    return f"{length}, {taken / 1e3:.1f} GB" if taken >= 1e3 else f"{length}, {taken:.1f} MB"


def line(name: str) -> str:
    """Return a model's line of the table."""
    cells = [size(trained(name, rank)) for rank in (None, *RANKS)]
    return f"| {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    print("| model | all parameters | " + " | ".join(f"LoRA, rank {r}" for r in RANKS) + " |")
    print("| :-- | --: | --: | --: |")
    for name in MODELS:
        print(line(name))
