"""Seconds to a quality: commands of train.py beside the conventional loop, each a whole process.

    python3 benchmarks/time_to_quality.py

In each round, with a seed of its own: conventional.py, ten epochs of pytorch/examples' network;
train.py with OURS, which is to reach its validation -ELBO; train.py to the seed project's
objective; and train.py as it is. All on the CPU.
"""

import json
import shlex
import statistics
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from utils import cli
from utils.device import pick_precision
from utils.flags import Settings

import torch

from benchmarks.common import (
    OURS,
    SEED_OBJECTIVE,
    SEED_WEIGHT,
    describe,
    machine,
    matrix_peak,
    median_and_range,
    metrics,
    run,
)
from benchmarks.conventional import extract_mnist

SEED_PROJECT = 72.40  # its objective on the validation images, after 84 epochs


def conventional_run(folder: str, seed: int, n_train: int) -> dict[str, float]:
    """The conventional loop, which finds MNIST extracted in `folder`. Raises UserError."""
    flags = ("--seed", str(seed), "--n_train", str(n_train))
    done = run("benchmarks/conventional.py", folder, *flags)
    result = json.loads(done.lines[-1])
    return {
        "conventional_seconds": done.seconds,
        "conventional_epoch_seconds": statistics.median(result["epoch_seconds"]),
        "target_neg_elbo": result["val_neg_elbo"],
    }


def our_run(flags: str, seed: int, n_train: int) -> tuple[float, dict[str, float]]:
    """Seconds of train.py, and the metrics of its best epoch. Raises UserError."""
    same = ("--seed", str(seed), "--n_train", str(n_train), "--device", "cpu")
    with TemporaryDirectory() as folder:
        done = run("train.py", *shlex.split(flags), *same, "--save_dir", folder)
        return done.seconds, metrics(Path(folder, "best.pth"))[-1]


def measure(folder: str, seed: int, n_train: int, precision: str) -> dict[str, float]:
    """One round. Raises UserError."""
    r = conventional_run(folder, seed, n_train)
    r["ours_seconds"], best = our_run(OURS, seed, n_train)
    r["ours_neg_elbo"] = best["val_neg_elbo"]
    r["ratio"] = r["conventional_seconds"] / r["ours_seconds"]
    r["seed_objective_seconds"], best = our_run(SEED_OBJECTIVE, seed, n_train)
    r["seed_objective"] = SEED_WEIGHT * best["val_recon_loss"] + best["val_kld_loss"]
    r["default_seconds"], best = our_run("", seed, n_train)
    r["default_neg_elbo"] = best["val_neg_elbo"]
    r["matrix_peak_gflops"] = matrix_peak(precision)
    return r


def table(rounds: list[dict[str, float]]) -> str:
    """Medians and ranges over the rounds in Markdown, and in how many the quality was reached."""
    n = len(rounds)
    targets, seed_project = [r["target_neg_elbo"] for r in rounds], [SEED_PROJECT] * n
    rows = (  # name, the keys of its seconds and of its quality, what that has to reach
        ("conventional.py", "conventional_seconds", "target_neg_elbo", None),
        (f"train.py {OURS}", "ours_seconds", "ours_neg_elbo", targets),
        (f"train.py {SEED_OBJECTIVE}", "seed_objective_seconds", "seed_objective", seed_project),
        ("train.py", "default_seconds", "default_neg_elbo", None),
    )
    lines = [
        "| command | seconds | times faster | epochs of conventional.py | quality | reached |",
        "|---|---|---|---|---|---|",
    ]
    for name, seconds_key, quality_key, aims in rows:
        seconds, quality = ([r[key] for r in rounds] for key in (seconds_key, quality_key))
        cells = [f"`{name}`", median_and_range(seconds)]
        pairs = list(zip(seconds, rounds, strict=True))
        times_faster = [r["conventional_seconds"] / mine for mine, r in pairs]
        epochs = [mine / r["conventional_epoch_seconds"] for mine, r in pairs]
        cells += [median_and_range(times_faster, ".2f"), median_and_range(epochs, ".2f")]
        kind = "objective" if quality_key == "seed_objective" else "-ELBO"
        cells.append(f"{kind} {median_and_range(quality, '.2f')}")
        if aims:
            reached = sum(value <= aim for value, aim in zip(quality, aims, strict=True))
            cells.append(f"{reached} of {n}")
        else:
            cells.append("")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = cli.parser("Measures seconds to a quality beside the conventional loop's.")
    add = parser.add_argument
    add("--n_rounds", type=cli.integer(1, 100), default=3, help="each with a seed of its own")
    images = cli.integer(1, 50_000)
    add("--n_train", type=images, default=50_000, help="images; fewer only to try this script")
    add("--json", action="store_true", help="print the medians as JSON too, on the last line")
    args = parser.parse_args()
    precision, rounds = pick_precision("auto", torch.device("cpu")), []
    with TemporaryDirectory() as folder:
        extract_mnist(cli.DATA_DIR, folder)  # once, outside of the times
        for i in range(args.n_rounds):
            print(f"round {i + 1} of {args.n_rounds}", file=sys.stderr, flush=True)
            rounds.append(measure(folder, Settings.seed + i, args.n_train, precision))

    medians = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
    print(describe(machine(precision) | {"rounds": args.n_rounds}), end=", ")
    print(f"matrix peak {medians['matrix_peak_gflops']:.0f} GFLOP/s")
    print("medians (ranges) over the rounds; quality on the validation images, -ELBO in nats;")
    print(f"an epoch of conventional.py: {medians['conventional_epoch_seconds']:.1f} s;")
    print(f"to be reached: its -ELBO, and the seed project's objective, {SEED_PROJECT:.2f}\n")
    print(table(rounds))
    if args.json:
        print(json.dumps(medians))


if __name__ == "__main__":
    cli.run(main)
