"""What a run of train.py costs: its start-up, and its time and memory as its flags grow.

python3 benchmarks/cost.py
"""

import statistics
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from utils import cli

from benchmarks.common import median_and_range, metrics, run

SWEEPS = {  # one flag at a time, the others at their defaults
    "n_train": (12_500, 25_000, 50_000),
    "batch_size": (32, 128, 512, 2048, 4096),
    "latent_dim": (2, 16, 64, 256),
    "n_epochs": (1, 2, 4),
}
N_STARTS = 3


def cost(**flags: int) -> tuple[float, float]:
    """Median seconds of an epoch of `train.py`, and its peak memory in MB. Raises UserError."""
    words = [f"--{name}={value}" for name, value in ({"n_epochs": 1} | flags).items()]
    with TemporaryDirectory() as folder:
        megabytes = run("train.py", *words, "--save_dir", folder).megabytes
        seconds = [row["seconds"] for row in metrics(Path(folder, "last.pth"))]
    return statistics.median(seconds), megabytes


def startup() -> float:
    """Seconds from the start of `train.py` to the end of an epoch of one step and its validation.

    Raises UserError.
    """
    with TemporaryDirectory() as folder:
        flags = ("--n_train", "128", "--n_epochs", "1", "--save_dir", folder)
        return run("train.py", *flags).epoch_ends[0]


def main() -> None:
    parser = cli.parser("Measures start-up, seconds an epoch and peak memory of train.py.")
    parser.parse_args()
    seconds = median_and_range([startup() for _ in range(N_STARTS)])
    print(f"start-up, one step and its validation, in seconds: {seconds}\n")
    print("| flag | value | seconds an epoch | microseconds an image | peak memory, MB |")
    print("|---|---|---|---|---|")
    for name, values in SWEEPS.items():
        for value in values:
            seconds, megabytes = cost(**{name: value})
            n_images = value if name == "n_train" else SWEEPS["n_train"][-1]
            times = f"{seconds:.1f} | {seconds / n_images * 1e6:.0f}"
            print(f"| `--{name}` | {value:,} | {times} | {megabytes:,.0f} |", flush=True)


if __name__ == "__main__":
    cli.run(main)
