"""What the benchmarks share: a script as a process of its own, and what this machine can do.

For Linux and macOS.
"""

import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from utils.checkpoint import load_checkpoint
from utils.cli import ROOT, UserError

import torch
from torch.utils.flop_counter import FlopCounterMode

from model import VAE

# Flags of train.py: to what conventional.py reaches, and to the seed project's objective.
OURS = "--latent_dim 20 --recon_weight 784 --n_blocks 1 --lr 0.009 --batch_size 96 --n_epochs 1"
SEED_WEIGHT = 1837.5
SEED_OBJECTIVE = (
    f"--recon_loss mse --recon_weight {SEED_WEIGHT} --n_blocks 2 --lr 0.006 --batch_size 128 "
    "--n_epochs 3"
)


class Finished(NamedTuple):
    """A process that has ended; times are in seconds since its start."""

    lines: list[str]  # what it printed
    epoch_ends: list[float]  # when it printed the line of each epoch
    seconds: float  # when it ended
    megabytes: float  # its peak memory


def run(script: str, *flags: str | Path) -> Finished:
    """Runs a script from its first import to its end. Lines about epochs are shown on stderr.

    Raises UserError if it fails.
    """
    start, lines, epoch_ends = time.perf_counter(), [], []
    command = [sys.executable, ROOT / script, *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        for line in process.stdout:
            lines.append(line.strip())
            if line.startswith("epoch"):
                epoch_ends.append(time.perf_counter() - start)
                print(line, end="", file=sys.stderr, flush=True)
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        process.kill()  # a benchmark that is stopped leaves nothing running
        raise
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    if process.returncode:
        raise UserError(f"{script} failed: {lines[-1] if lines else 'it was killed.'}")
    bytes_of_unit = 1 if sys.platform == "darwin" else 1024
    return Finished(lines, epoch_ends, seconds, usage.ru_maxrss * bytes_of_unit / 1e6)


def metrics(checkpoint: str | Path) -> list[dict[str, float]]:
    """A row for each epoch: all of them from last.pth, and from best.pth those up to the best."""
    return load_checkpoint(checkpoint)[1]["metrics"]


def matrix_peak(precision: str) -> float:
    """GFLOP/s of the fastest of a few plain matrix products."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    best = 0.0
    for n in (512, 1024, 2048):
        a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
        for _ in range(8):
            start = time.perf_counter()
            a @ b
            best = max(best, 2 * n**3 / (time.perf_counter() - start) / 1e9)
    return best


def flops_of_an_image(model: VAE) -> float:
    """Multiplications and additions of forward and backward with one draw, without the prior's."""
    n = 8
    with FlopCounterMode(display=False) as counter:
        logits, mu, logvar = model(torch.rand(n, 1, 28, 28))
        (logits.sum() + mu.sum() + logvar.sum()).backward()
    return counter.get_total_flops() / n


def machine(precision: str) -> dict[str, str | int]:
    """The facts that every table of times needs."""
    facts = {"precision": precision, "threads": torch.get_num_threads()}
    return facts | {"machine": platform.machine(), "torch": torch.__version__}


def describe(facts: dict) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def median_and_range(values: list[float], form: str = ",.1f") -> str:
    """The cell of a table: "median (lowest to highest)"."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):{form}} ({low:{form}} to {high:{form}})"
