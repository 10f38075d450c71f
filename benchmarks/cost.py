"""What a run of train.py costs: its start-up, and as its flags grow the seconds of an epoch and the peak of memory.

python3 benchmarks/cost.py
"""

import csv
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import cli
from errors import UserError

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
SWEEPS = {  # one flag at a time, the others at their defaults
    "n_train": (12_500, 25_000, 50_000),
    "batch_size": (32, 128, 512, 2048, 4096),
    "latent_dim": (2, 16, 64, 256),
    "n_epochs": (1, 2, 4),
}
N_STARTS = 3


def cost(**flags: int) -> tuple[float, float]:
    """Median seconds of an epoch of `train.py`, and the peak of its memory in MB. Raises UserError."""
    flags = {"n_epochs": 1} | flags
    with tempfile.TemporaryDirectory() as folder:
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        process = subprocess.Popen([sys.executable, TRAIN, *words, "--save_dir", folder], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise UserError(f"train.py {' '.join(words)} failed; see its error above.")
        with open(Path(folder) / "metrics.csv", newline="") as file:
            seconds = sorted(float(row["seconds"]) for row in csv.DictReader(file))
    return seconds[len(seconds) // 2], usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def startup() -> float:
    """Seconds from the start of `train.py` to the end of an epoch of one step and its validation. Raises UserError."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, TRAIN, "--n_train", "128", "--n_epochs", "1", "--save_dir", folder]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                if line.startswith("epoch"):
                    seconds = time.perf_counter() - start
        if process.returncode:
            raise UserError("train.py failed; see its error above.")
    return seconds


def main() -> None:
    cli.parser("Measures the start-up of train.py, and its seconds an epoch and peak memory as its flags grow.").parse_args()
    times = sorted(startup() for _ in range(N_STARTS))
    print(f"start-up, one step and its validation: {times[N_STARTS // 2]:.1f} s ({times[0]:.1f} to {times[-1]:.1f})\n")
    print("| flag | value | seconds an epoch | microseconds an image | peak memory, MB |")
    print("|---|---|---|---|---|")
    for name, values in SWEEPS.items():
        for value in values:
            seconds, megabytes = cost(**{name: value})
            n_images = value if name == "n_train" else SWEEPS["n_train"][-1]
            print(f"| `--{name}` | {value:,} | {seconds:.1f} | {seconds / n_images * 1e6:.0f} | {megabytes:,.0f} |", flush=True)


if __name__ == "__main__":
    cli.run(main)
