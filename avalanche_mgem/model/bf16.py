"""Whether a processor multiplies bfloat16 matrices in units made for it."""

from __future__ import annotations

import platform
import warnings

import torch

# torch's names for what x86 processors may have; older versions know fewer of them.
_UNITS = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
_X86 = ("x86_64", "amd64", "i386", "i686")


def has_bf16_units(device: torch.device) -> bool:
    """Return whether products in bfloat16 can be expected to be faster there than in float32.

    True where nothing is known of a device.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu" or platform.machine().lower() not in _X86:
        return True
    known = [getattr(torch.cpu, name)() for name in _UNITS if hasattr(torch.cpu, name)]
    return any(known) or not known


def warn_of_slow_bf16(setting: str, device: torch.device) -> None:
    """Warn, in a line, where a setting asks for passes in bfloat16 and float32 is faster."""
    if not has_bf16_units(device):
        warnings.warn(
            f"{setting}: this processor has no bfloat16 matrix units; rows are kept in bfloat16, "
            "the memory's passes stay in float32 (in bfloat16 they took 4 to 13 times as long: "
            "MLP and ResNet-18, AVX2)",
            RuntimeWarning,
            stacklevel=2,
        )
