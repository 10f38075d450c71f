"""What every script shares: flag types, the common flags, device and precision, and how a mistake is reported."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy
import torch
import torch.distributed as dist
from torch import Tensor

from data import DATA_DIR
from errors import UserError

MAX_SEED = 2**31 - 1
MAX_BATCH_SIZE = 8192


def parser(description: str) -> argparse.ArgumentParser:
    """A parser that shows its defaults and takes no abbreviated flags."""
    return argparse.ArgumentParser(
        description=description, allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )


def _between(kind: type, name: str, low: float, high: float) -> Callable[[str], float]:
    """A flag type: a number of this kind from `low` to `high`; nan is none."""

    def parse(text: str) -> float:
        with suppress(ValueError):
            if low <= (value := kind(text)) <= high:
                return value
        raise argparse.ArgumentTypeError(f"must be a {name} from {low} to {high}, not {text!r}")

    return parse


integer, number = partial(_between, int, "whole number"), partial(_between, float, "number")


def add_common_flags(parser: argparse.ArgumentParser, batch_size: int) -> None:
    """--seed --batch_size --data_dir --device --precision"""
    parser.add_argument("--seed", type=integer(0, MAX_SEED), default=888, help="of every random draw")
    parser.add_argument("--batch_size", type=integer(1, MAX_BATCH_SIZE), default=batch_size, help="images a batch")
    parser.add_argument("--data_dir", type=Path, default=DATA_DIR, help="folder that holds <dataset>/raw/*.gz")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to compute")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of the matrix products")


def pick_device(name: str) -> torch.device:
    """The device that a flag names; "auto" is the first of cuda, mps, cpu that is there. Raises UserError."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, available in there.items() if available)
    if not there[name]:
        raise UserError(f"--device {name} is not available on this machine; use --device auto or --device cpu.")
    return torch.device(name)


def pick_precision(name: str, device: torch.device) -> str:
    """ "fp32" or "bf16"; "auto" is bf16 where the processor multiplies it natively, else fp32."""
    if name != "auto":
        return name
    if device.type == "cpu":
        native = any(torch.cpu.get_capabilities().get(flag, False) for flag in ("avx512_bf16", "amx_bf16"))
    else:
        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if native else "fp32"


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """A context in which matrix products and convolutions run in `precision`; the weights stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def rng(*seeds: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A random generator whose stream is a function of `seeds` alone, and unrelated for different seeds."""
    state = numpy.random.SeedSequence(seeds).generate_state(1)
    return torch.Generator(device).manual_seed(int(state[0]))


def rank_and_world_size() -> tuple[int, int]:
    """This process's number and how many there are: (0, 1) unless torchrun started several."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum of every process's `tensor`, which is on the CPU."""
    if dist.is_initialized():
        tensor = tensor.cuda() if dist.get_backend() == "nccl" else tensor
        dist.all_reduce(tensor)
    return tensor


@contextmanager
def process_group(device: torch.device, batch_size: int) -> Iterator[int]:
    """Joins the processes that torchrun started, if it did; gives this one's rank.

    Raises UserError if `batch_size` does not split evenly.
    """
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if batch_size % world_size:
        raise UserError(f"--batch_size {batch_size} does not split over {world_size} processes; make it a multiple.")
    if world_size > 1:
        if device.type == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield rank_and_world_size()[0]
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def run(main: Callable[[], None]) -> None:
    """Calls a script's main; a mistake of the user's becomes one sentence and exit code 2, a signal 128 + its number."""

    def terminate(number, _):
        raise KeyboardInterrupt(number)  # ends a run as Ctrl-C does: no `except Exception` holds it up

    signal.signal(signal.SIGTERM, terminate)
    try:
        main()
        sys.stdout.flush()  # here, where a broken pipe is caught
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        sys.exit(128 + (stop.args[0] if stop.args else signal.SIGINT))
    except BrokenPipeError:  # the reader of our output has gone, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
