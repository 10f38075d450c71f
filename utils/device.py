"""Devices, precisions and random number generators."""

import sys
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

from utils.cli import UserError


def pick_device(name: str) -> torch.device:
    """The named device or, for "auto", the first one that works. Raises UserError."""
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if _is_there(kind) and _works(kind))
    if not _is_there(name):
        raise UserError(f"device {name} is not available on this machine; use cpu.")
    return torch.device(name)


def _is_there(name: str) -> bool:
    return torch.get_device_module(name).is_available()


def _works(kind: str) -> bool:
    """Whether PyTorch can compute on the device; some builds have no kernels for an old GPU."""
    try:
        return torch.ones(1, device=kind).add(1).item() == 2
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        print(f"note: PyTorch cannot use {kind} ({reason}); using another device.", file=sys.stderr)
        return False


def pick_precision(name: str, device: torch.device) -> str:
    """Returns "fp32" or "bf16"; for "auto", bf16 if the device supports it natively, else fp32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    flags = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return "bf16" if flags.get("avx512_bf16") or flags.get("amx_bf16") else "fp32"


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """A context that runs matrix products in `precision`."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def rng(*seeds: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator seeded by `seeds` alone. rng(7) and rng(7, 0) give the same stream."""
    state = np.random.SeedSequence(seeds).generate_state(1)
    return torch.Generator(device).manual_seed(int(state[0]))
