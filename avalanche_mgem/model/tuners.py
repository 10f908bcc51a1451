"""Which adapter of peft a module is, told by its attributes and class: peft need not be there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from avalanche_mgem.model.targets import inside

# The names that their authors gave them, by peft's directory; peft has further ones.
_NAMES = {
    "adalora": "AdaLoRA",
    "adaption_prompt": "LLaMA-Adapter",
    "boft": "BOFT",
    "c3a": "C3A",
    "delora": "DeLoRA",
    "fourierft": "FourierFT",
    "gralora": "GraLoRA",
    "hira": "HiRA",
    "hra": "HRA",
    "ia3": "IA3",
    "ln_tuning": "LN tuning",
    "loha": "LoHa",
    "lokr": "LoKr",
    "lora": "LoRA",
    "miss": "MiSS",
    "oft": "OFT",
    "osf": "OSF",
    "randlora": "RandLoRA",
    "road": "RoAd",
    "vblora": "VB-LoRA",
    "vera": "VeRA",
}


def adapter_kind(module: nn.Module) -> str | None:
    """Return which adapter of peft the module is, such as "LoRA" or "IA3"; None where it is none.

    peft's layers have a `base_layer` and say which of their attributes are the adapter's. What they
    are is the name of the directory that their class is in, or else that of the class.
    """
    if not hasattr(module, "adapter_layer_names"):
        return None
    for parent in type(module).__mro__:
        directory, _, rest = parent.__module__.removeprefix("peft.tuners.").partition(".")
        if parent.__module__.startswith("peft.tuners.") and rest:
            return _named(directory)
    return type(module).__name__


def adapter_kinds(model: nn.Module) -> dict[str, list[str]]:
    """Return the kinds of peft's adapters in `model`, each with the names of its modules.

    What adds to the input and not to a layer, such as prompt tuning, is told by the model's
    `peft_config`, and its module is "".
    """
    kinds: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        if (kind := adapter_kind(module)) is not None:
            kinds.setdefault(kind, []).append(name)
    for module in () if kinds else model.modules():
        configurations = getattr(module, "peft_config", None)
        if isinstance(configurations, Mapping):
            for configuration in configurations.values():
                kind = getattr(configuration, "peft_type", "peft")
                kinds[_named(str(getattr(kind, "value", kind)).lower())] = [""]
    return kinds


def why_none_is_gated(model: nn.Module, names: Sequence[str]) -> str:
    """Say why no weight has rows to gate in the layers of these names."""
    kinds = adapter_kinds(model)
    if kinds.keys() - {"LoRA"}:
        named = ", ".join(_with_place(kind, where) for kind, where in kinds.items())
        return (
            f"its adapters are {named}, whose parameters are no rows of a layer's output; what can "
            "be gated are weights that train and, of peft's adapters, LoRA"
        )
    trained = [
        layer
        for layer in names
        if any(p.requires_grad and inside(n, layer) for n, p in model.named_parameters())
    ]
    if trained:
        return f"the weights of {_listed(trained)} are no parameters with rows of their own"
    said, where = f"the weights of {_listed(names)} are frozen", kinds.get("LoRA", [])
    if on_others := [name for name in where if _trains(model.get_submodule(name))]:
        return f"{said}, and its LoRA adapters are on others ({_listed(on_others)})"
    return f"{said}, and so are its LoRA adapters, or they are switched off" if where else said


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _named(directory: str) -> str:
    return _NAMES.get(directory, directory.replace("_", " "))


def _with_place(kind: str, where: Sequence[str]) -> str:
    return f"{kind} ({_listed(where)})" if where[0] else kind


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
