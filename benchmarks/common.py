"""What the benchmarks share: scripts as processes (Linux, macOS), and facts about the machine."""

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from torchvision import datasets

from checkpoint import load_checkpoint
from train import parse_flags
from utils.cli import DATA_DIR, ROOT, UserError

# Flags of train.py: to the quality of conventional.py, and to the seed project's objective.
OURS = "--latent_dim 20 --recon_weight 784 --n_blocks 1 --lr 0.009 --batch_size 96 --n_epochs 1"
SEED_OBJECTIVE = (
    "--recon_loss mse --recon_weight 1837.5 --n_blocks 2 --lr 0.006 --batch_size 128 --n_epochs 3"
)


class Finished(NamedTuple):
    lines: list[str]  # of its standard output
    seconds: float  # from its start to its end
    megabytes: float  # its peak memory


def run(command: str, path: str | Path) -> Finished:
    """Runs "script.py flags" and a path as a process, with our stderr. Raises UserError."""
    start = time.perf_counter()
    script, *flags = shlex.split(command)
    words = [sys.executable, ROOT / script, *flags, path]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        lines = process.stdout.read().splitlines()
        _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise UserError(f"{script} failed; see its own message above.")
    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    return Finished(lines, time.perf_counter() - start, usage.ru_maxrss * unit / 1e6)


def train(flags: str, folder: str | Path) -> tuple[Finished, list[dict[str, float]]]:
    """Runs train.py, and reads its metrics, a row per epoch up to the best. Raises UserError."""
    done = run(f"train.py {flags} --save_dir", folder)
    return done, load_checkpoint(Path(folder, "best.pth"))[1]["metrics"]


def train_on_cpu(flags: str)...
