"""Where and how to compute: device, precision, random streams, and several processes."""

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

from utils.cli import UserError

import numpy
import torch
import torch.distributed as dist
from torch import Tensor


def pick_device(name: str) -> torch.device:
    """The device of a flag; "auto" is the first there of cuda, mps, cpu. Raises UserError."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    there = [device for device, is_there in available.items() if is_there] + ["cpu"]
    if name not in ("auto", *there):
        raise UserError(f"--device {name} is not available on this machine; use --device cpu.")
    return torch.device(there[0] if name == "auto" else name)


def pick_precision(name: str, device: torch.device) -> str:
    """ "fp32" or "bf16"; "auto" is bf16 where the processor multiplies it natively, else fp32."""
    native = False
    if device.type == "cpu":
        flags = torch.cpu.get_capabilities()
        native = flags.get("avx512_bf16", False) or flags.get("amx_bf16", False)
    elif device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    return name if name != "auto" else "bf16" if native else "fp32"


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """A context whose matrix products run in `precision`; the weights stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def rng(*seeds: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose stream is a function of `seeds` alone; zeros at their end do not count."""
    state = numpy.random.SeedSequence(seeds).generate_state(1)
    return torch.Generator(device).manual_seed(int(state[0]))


def rank_and_world_size() -> tuple[int, int]:
    """This process's number and how many there are: (0, 1) unless torchrun started several."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def average_over_processes(tensors: Iterable[Tensor]) -> None:
    """Replaces each tensor by its mean over the processes, in place."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.all_reduce(tensor)
            tensor /= dist.get_world_size()


@contextmanager
def process_group(device: torch.device, batch_size: int, n_images: int) -> Iterator[int]:
    """Joins the processes that torchrun started, if it did; gives this one's rank.

    Raises UserError unless each gets an equal share of a batch, and an image at least.
    """
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if batch_size % world_size or n_images < world_size:
        raise UserError(
            f"{world_size} processes cannot share --batch_size {batch_size} and --n_train "
            f"{n_images} equally; make the first a multiple of {world_size}, the second larger."
        )
    if world_size > 1:
        if device.type == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield rank_and_world_size()[0]
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
