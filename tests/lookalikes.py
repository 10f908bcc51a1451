"""Miniatures of layers that other libraries have: the same attributes, the same forward pass."""

import torch
from torch import nn


class Conv1D(nn.Module):
    """transformers' Conv1D, as in gpt2: a linear layer whose weight is [in, out]."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(
            *x.shape[:-1], self.nf
        )


class LoraLinear(nn.Module):
    """peft's lora.Linear (and, on a convolution, its lora.Conv2d)."""

    def __init__(self, base_layer, ranks, alpha=4, dropout=0.0):
        super().__init__()
        self.base_layer = base_layer.requires_grad_(False)
        self.lora_A, self.lora_B = nn.ModuleDict(), nn.ModuleDict()
        self.lora_dropout = nn.ModuleDict()
        self.scaling, self.use_dora, self.lora_variant = {}, {}, {}
        self.active_adapters, self.merged_adapters = list(ranks), []
        self.disable_adapters = False
        for adapter, rank in ranks.items():
            self.lora_A[adapter], self.lora_B[adapter] = self._pair(base_layer, rank)
            self.lora_dropout[adapter] = nn.Dropout(dropout)
            self.scaling[adapter] = alpha / rank

    @staticmethod
    def _pair(base, rank):
        if isinstance(base, nn.Conv2d):
            down = nn.Conv2d(base.in_channels, rank, base.kernel_size, base.stride, base.padding)
            return down, nn.Conv2d(rank, base.out_channels, 1, bias=False)
        into, out = (base.nx, base.nf) if isinstance(base, Conv1D) else base.weight.shape[::-1]
        return nn.Linear(into, rank, bias=False), nn.Linear(rank, out, bias=False)

    @property
    def weight(self):
        return self.base_layer.weight

    @property
    def merged(self):
        return bool(self.merged_adapters)

    def forward(self, x):
        result = self.base_layer(x)
        if self.disable_adapters or self.merged:
            return result
        for adapter in self.active_adapters:
            if adapter in self.lora_A:
                inner = self.lora_A[adapter](self.lora_dropout[adapter](x))
                result = result + self.lora_B[adapter](inner) * self.scaling[adapter]
        return result


class Block(nn.Module):
    """Attention-like: two projections and a feed-forward layer, with names as in Llama."""

    def __init__(self, width):
        super().__init__()
        self.q_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x):
        x = x + torch.sigmoid(self.q_proj(x)) * self.v_proj(x)
        return x + self.down(torch.relu(self.up(self.norm(x))))


class LanguageModel(nn.Module):
    """Like Hugging Face's: a body, and an output layer that may be tied to the embedding."""

    def __init__(self, width=4, n_words=7, n_blocks=2, tied=True):
        super().__init__()
        self.embedding = nn.Embedding(n_words, width)
        self.layers = nn.ModuleList(Block(width) for _ in range(n_blocks))
        self.out = nn.Linear(width, n_words, bias=False)
        if tied:
            self.out.weight = self.embedding.weight

    def get_output_embeddings(self):
        return self.out

    def forward(self, tokens):
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.out(x)


def with_lora(model, names, ranks):
    """Freeze a model and put LoRA layers on the modules of these names, as get_peft_model does."""
    model.requires_grad_(False)
    for name, module in list(model.named_modules()):
        if name.rpartition(".")[2] in names:
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], LoraLinear(module, ranks))
    return model
