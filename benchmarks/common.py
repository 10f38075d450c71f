"""Shared by the benchmarks: runs scripts as processes (Linux, macOS) and describes the machine."""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import torch

from checkpoint import load_checkpoint
from train import parse_flags
from utils.cli import ROOT, UserError


def run(command: str, *paths: str | Path) -> tuple[str, dict[str, float]]:
    """Runs "script.py flags" on paths; returns its last printed line and cost. Raises UserError."""
    start = time.perf_counter()
    script, *flags = shlex.split(command)
    words = [sys.executable, ROOT / script, *flags, *paths]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        lines = process.stdout.readlines()
        _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise UserError(f"{script} failed; see its message above.")
    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    cost = {"run_seconds": time.perf_counter() - start}
    return lines[-1], cost | {"megabytes": usage.ru_maxrss * unit / 1e6}


def train(command: str, folder: str | Path) -> dict[str, float]:
    """Runs "train.py flags"; returns the best epoch's metrics and the cost. Raises UserError."""
    _, cost = run(f"{command} --save_dir", folder)
    return load_checkpoint(Path(folder, "best.pth"))[1]["metrics"][-1] | cost


def evaluate(command: str, folder: str | Path) -> dict[str, float]:
    """Runs "evaluate.py flags" on best.pth; returns the metrics. Raises UserError."""
    return json.loads(run(f"{command} --json --model_params", Path(folder, "best.pth"))[0])


def machine(flags: str) -> str:
    """CPU, threads, PyTorch version, and train.py's device and precision with these flags."""
    args, cpuinfo = parse_flags(shlex.split(flags)), Path("/proc/cpuinfo")
    names = re.findall("model name\t: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else []
    facts = [platform.machine(), *names[:1], f"{torch.get_num_threads()} threads"]
    return ", ".join((*facts, str(args.device), args.precision, f"PyTorch {torch.__version__}"))
