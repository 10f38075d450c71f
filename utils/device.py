"""Where and how to compute: device, precision, random streams."""

import numpy as np
import torch

from utils.cli import UserError


def pick_device(name: str) -> torch.device:
    """The device of this name; "auto" is the first available of cuda, mps, cpu. Raises UserError."""
    is_available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device in is_available if is_available[device])
    device = torch.device(name)
    if not is_available[device.type]:
        raise UserError(f"device {name} is not available on this machine; use cpu.")
    return device


def pick_precision(name: str, device: torch.device) -> str:
    """ "fp32" or "bf16"; "auto" is bf16 where the processor multiplies it natively, else fp32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    flags = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return "bf16" if flags.get("avx512_bf16") or flags.get("amx_bf16") else "fp32"


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """A context whose matrix products run in `precision`; the weights stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def rng(*seeds: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose stream depends on `seeds` alone; zeros at their end do not count."""
    state = np.random.SeedSequence(seeds).generate_state(1)
    return torch.Generator(device).manual_seed(int(state[0]))
