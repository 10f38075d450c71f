"""What a run of train.py costs on the CPU, in seconds and memory, as one flag at a time changes.

python3 benchmarks/cost.py
"""

import json
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.common import Finished, machine, metrics, run
from benchmarks.conventional import extract_mnist
from utils import cli

SWEEPS = {  # one epoch with the defaults, except for this flag
    "n_train": (12_500, 25_000, 50_000),
    "batch_size": (32, 128, 512, 2048),
    "latent_dim": (2, 16, 64, 256),
    "arch": ("mlp", "conv"),
    "n_epochs": (1, 2, 4),
}
SIMILAR = "--latent_dim 20 --width 400 --n_blocks 1 --batch_size 128"  # to conventional.py


def cost(flags: str) -> tuple[Finished, float]:
    """A run of train.py, and the median seconds of its epochs. Raises UserError."""
    with TemporaryDirectory() as folder:
        done = run(f"train.py --device cpu --n_epochs 1 {flags} --save_dir", folder)
        return done, median(row["seconds"] for row in metrics(folder, "last.pth"))


def conventional_seconds() -> float:
    """Of one epoch of the conventional loop. Raises UserError."""
    with TemporaryDirectory() as folder:
        extract_mnist(folder)
        done = run("benchmarks/conventional.py --n_epochs 1", folder)
    return json.loads(done.lines[-1])["epoch_seconds"][0]


def main() -> None:
    cli.parser("Measures seconds and peak memory of train.py as its flags change.").parse_args()
    print(f"{machine('--device cpu')}\n")
    print("| flag | seconds of the whole run | seconds per epoch | peak memory, MB |")
    print("|---|---|---|---|", flush=True)
    for name, values in SWEEPS.items():
        for value in values:
            done, seconds = cost(f"--{name} {value}")
            cells = f"{done.seconds:.1f} | {seconds:.1f} | {done.megabytes:,.0f}"
            print(f"| `--{name} {value}` | {cells} |", flush=True)
    theirs, (_, ours) = conventional_seconds(), cost(SIMILAR)
    print(f"\nimages/s, train.py {SIMILAR} over conventional.py (784-400-20-400-784,")
    print(f"batch 128, fp32), one epoch each: {theirs / ours:.1f} ({ours:.1f} s, {theirs:.1f} s)")


if __name__ == "__main__":
    cli.run(main)
