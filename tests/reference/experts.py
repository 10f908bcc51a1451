"""What experts put out, slowly: token by token, each expert's matrices by the formula."""

import contextlib

import torch


def slow_scores(model, inputs, tokens=None, of=lambda key, expert, x, y: y):
    """{layer name: ([experts, n] mean of |y|, [experts] number of tokens)} of all experts.

    Of gate_up_proj, [experts, 2, n]: the gate's and the other half.

    Args:
        model: of transformers, in training mode, without dropout.
        inputs: of the model.
        tokens: bool [N * L], those that count; None: all.
        of: what else is averaged of an expert's input and output.
    """
    scores = {}
    for name, module in model.named_modules():
        if _knows(module):
            for call in _calls(model, module, inputs):
                scores |= _scores(name, module, call, tokens, of)
    return scores


def _knows(module):
    return "Experts" in type(module).__name__ and hasattr(module, "forward")


def _calls(model, module, inputs):
    seen = []
    hook = module.register_forward_pre_hook(lambda _module, args: seen.append(args))
    state = torch.get_rng_state()
    with torch.no_grad(), contextlib.suppress(StopIteration):
        model(**inputs)
    torch.set_rng_state(state)
    hook.remove()
    return seen


def _scores(name, module, call, tokens, of):
    matrices, scores = _matrices(module), {}
    counts = torch.zeros(module.num_experts, dtype=torch.int64)
    outputs = {key: [[] for _ in range(module.num_experts)] for key in matrices}
    for token, expert, x in _routed(module, call):
        if tokens is not None and not tokens[token]:
            continue
        counts[expert] += 1
        for key, own, y in _expert_outputs(module, matrices, expert, x):
            outputs[key][expert].append(of(key, expert, own, y).abs().double())
    for key, of_experts in outputs.items():
        none = torch.zeros_like(next(y for rows in of_experts for y in rows))
        means = [torch.stack(rows).mean(0) if rows else none for rows in of_experts]
        scores[f"{name}.{key}"] = torch.stack(means), counts.clone()
    return scores


def _routed(module, call):
    """Token, expert, input of each that is routed to an expert."""
    x = call[0].detach()
    if len(call) == 1:  # Llama 4: a copy of all tokens for each expert, zeros where it has none
        each = x.view(module.num_experts, -1, x.shape[-1])
        for expert in range(module.num_experts):
            for token, row in enumerate(each[expert]):
                if row.any():
                    yield token, expert, row
        return
    x, index = x.reshape(-1, x.shape[-1]), call[1].reshape(-1, call[1].shape[-1])
    for token, experts in enumerate(index.tolist()):
        for expert in experts:
            yield token, expert, x[token]


def _matrices(module):
    """Names of what an expert puts out."""
    if hasattr(module, "mlp"):  # DBRX
        return ["mlp.w1", "mlp.v1", "mlp.w2"]
    if hasattr(module, "gate_up_proj"):
        return ["gate_up_proj", "down_proj"]
    return ["up_proj", "down_proj"]


def _expert_outputs(module, names, expert, x):
    if hasattr(module, "mlp"):
        glu, n = module.mlp, module.mlp.ffn_hidden_size
        w1, v1, w2 = (w.detach()[expert * n : (expert + 1) * n] for w in (glu.w1, glu.v1, glu.w2))
        gate, up = w1 @ x, v1 @ x
        hidden = glu.activation_fn(gate) * up
        yield from zip(names, [x, x, hidden], [gate, up, w2.T @ hidden], strict=True)
        return
    y = _linear(module, names[0], expert, x)
    if names[0] == "up_proj":
        yield "up_proj", x, y
        hidden = module.act_fn(y)
    else:
        in_turn = not getattr(module, "is_concatenated", True)
        gate, up = (y[::2], y[1::2]) if in_turn else y.chunk(2)
        yield "gate_up_proj", x, torch.stack([gate, up])
        own = getattr(module, "_apply_gate", None)
        hidden = module.act_fn(gate) * up if own is None else own(y)
    yield "down_proj", hidden, _linear(module, "down_proj", expert, hidden)


def _linear(module, name, expert, x):
    weight = getattr(module, name).detach()[expert]
    transposed = getattr(module, "is_transposed", type(module).__name__ == "Llama4TextExperts")
    y = x @ weight if transposed else weight @ x
    bias = getattr(module, f"{name}_bias", None)
    return y if bias is None else y + bias.detach()[expert]
