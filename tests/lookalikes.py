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


class TopKRouter(nn.Module):
    """transformers' routers from version 5 on, as Mixtral's."""

    def __init__(self, width, n_experts, top_k=2):
        super().__init__()
        self.top_k = top_k
        self.weight = nn.Parameter(torch.randn(n_experts, width))

    def forward(self, x):
        logits = nn.functional.linear(x, self.weight)
        weights, index = logits.softmax(-1).topk(self.top_k, dim=-1)
        return logits, weights, index


class Experts(nn.Module):
    """transformers' experts, as Mixtral's or, transposed and with biases, GPT-OSS's."""

    def __init__(self, width, inner, n_experts, transposed=False):
        super().__init__()
        self.num_experts, self.is_transposed = n_experts, transposed
        self.is_concatenated = not transposed
        shapes = {"gate_up_proj": (2 * inner, width), "down_proj": (width, inner)}
        for name, shape in shapes.items():
            matrix = torch.randn(n_experts, *(shape[::-1] if transposed else shape)) / width**0.5
            setattr(self, name, nn.Parameter(matrix))
            if transposed:
                setattr(self, f"{name}_bias", nn.Parameter(torch.zeros(n_experts, shape[0])))

    def _linear(self, x, name, expert):
        matrix = getattr(self, name)[expert]
        if not self.is_transposed:
            return nn.functional.linear(x, matrix)
        return x @ matrix + getattr(self, f"{name}_bias")[expert]

    def forward(self, x, index, weights):
        output = torch.zeros_like(x)
        for expert in range(self.num_experts):
            token, place = torch.where(index == expert)
            y = self._linear(x[token], "gate_up_proj", expert)
            gate, up = (y[..., ::2], y[..., 1::2]) if self.is_transposed else y.chunk(2, dim=-1)
            y = self._linear(nn.functional.silu(gate) * up, "down_proj", expert)
            output.index_add_(0, token, y * weights[token, place, None])
        return output


class Mixture(nn.Module):
    """A mixture of experts beside its input; a sample is a token."""

    def __init__(self, width, inner=6, n_experts=4, transposed=False):
        super().__init__()
        self.router = TopKRouter(width, n_experts)
        self.experts = Experts(width, inner, n_experts, transposed)

    def forward(self, x):
        _, weights, index = self.router(x)
        return x + self.experts(x, index, weights)


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
