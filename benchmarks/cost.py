"""The time and peak memory of train.py on the CPU with different flags."""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.common import machine, run, train
from utils import cli

SWEEPS = {  # flag -> values; the rest: --device cpu, --n_epochs 1, other defaults
    "n_train": (12_500, 25_000, 50_000),
    "batch_size": (32, 128, 512, 2048),
    "latent_dim": (2, 16, 64, 256),
    "arch": ("mlp", "conv"),
}


def print_row(flags: str) -> float:
    """Prints the cost of a run; returns the seconds that its best epoch took. Raises UserError."""
    with TemporaryDirectory() as folder:
        best = train(f"train.py --device cpu --n_epochs 1 {flags}", folder)
    cells = f"{best['run_seconds']:.1f} | {best['seconds']:.1f} | {best['megabytes']:,.0f}"
    print(f"| `{flags}` | {cells} |", flush=True)
    return best["seconds"]


def main() -> None:
    cli.parser("Measures the time and peak memory of train.py with different flags.").parse_args()
    print(f"{machine('--device cpu')}\n")
    print("| flags | seconds of the run | seconds of its best epoch | peak memory, MB |")
    print("|---|---|---|---|")
    for name, values in SWEEPS.items():
        for value in values:
            print_row(f"--{name} {value}")
    ours = print_row("--latent_dim 20 --width 400 --n_blocks 0 --batch_size 128")  # their layers
    last, _ = run("benchmarks/conventional.py --n_epochs 1")
    theirs = json.loads(last)["epoch_seconds"][0]
    print(f"\nimages/s of the last row relative to conventional.py: {theirs / ours:.1f}")


if __name__ == "__main__":
    cli.run(main)
