"""Which rows MIGU masks, slowly: a forward pass for each layer, outputs by the formula, a sort."""

import torch
from torch.nn import functional


def slow_masks(model, inputs, fraction):
    """{layer name: list of bool, True = kept} of every linear layer that is no head.

    `q` of a LoRA layer is its combined output, `q.lora_A.NAME` that of its A.
    """
    masks = {}
    for name, module in model.named_modules():
        inside_lora = any(part in name for part in (".lora_", ".base_layer"))
        is_linear = isinstance(module, torch.nn.Linear) or hasattr(module, "lora_A")
        if is_linear and not inside_lora:
            x = _input_of(model, module, inputs)
            masks |= {key: _kept(y, fraction) for key, y in _outputs(name, module, x)}
    return masks


def _input_of(model, module, inputs):
    seen = []
    hook = module.register_forward_pre_hook(lambda _module, args: seen.append(args[0].detach()))
    with torch.no_grad():
        model(**inputs)
    hook.remove()
    assert len(seen) == 1
    return seen[0]


def _outputs(name, module, x):
    if not hasattr(module, "lora_A"):
        yield name, functional.linear(x, module.weight, module.bias)
        return
    base = module.base_layer
    combined = functional.linear(x, base.weight, base.bias)
    for adapter in module.active_adapters:
        inner = functional.linear(x, module.lora_A[adapter].weight)
        outer = functional.linear(inner, module.lora_B[adapter].weight)
        combined = combined + module.scaling[adapter] * outer
        yield f"{name}.lora_A.{adapter}", inner
    yield name, combined


def _kept(y, fraction):
    size = y.detach().abs().flatten(0, -2).double().mean(0).tolist()
    n_masked = int(fraction * len(size) + 1e-9)
    by_size = sorted(range(len(size)), key=lambda i: (-size[i], i))
    return [i in by_size[: len(size) - n_masked] for i in range(len(size))]
