"""Seconds to a quality: commands of train.py beside the conventional loop, each a whole process.

    python3 benchmarks/time_to_quality.py

In each round, with its own seed and on the CPU: conventional.py, ten epochs; train.py, which is to
reach its validation -ELBO, then the seed project's objective; and train.py with its defaults.
"""

import json
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.common import OURS, SEED_OBJECTIVE, machine, metrics, run
from benchmarks.conventional import extract_mnist
from utils import cli

SEED_PROJECT = 72.40  # its objective on the validation images, after 84 epochs
COMMANDS = {  # in a round, *_seconds -> the command, and the key of its quality
    "conventional": ("conventional.py", "target_neg_elbo"),
    "ours": (f"train.py {OURS}", "ours_neg_elbo"),
    "seed_objective": (f"train.py {SEED_OBJECTIVE}", "seed_objective"),
    "default": ("train.py", "default_neg_elbo"),
}


def measure(folder: str, seed: int, n_train: int) -> dict[str, float]:
    """One round; MNIST is extracted in `folder`. Raises UserError."""
    same = f"--seed {seed} --n_train {n_train}"
    done = run(f"benchmarks/conventional.py {same}", folder)
    theirs = json.loads(done.lines[-1])
    r = {"conventional_seconds": done.seconds, "target_neg_elbo": theirs["val_neg_elbo"]}
    r["conventional_epoch_seconds"] = median(theirs["epoch_seconds"])
    for name in ("ours", "seed_objective", "default"):
        command, quality = COMMANDS[name]
        with TemporaryDirectory() as save_dir:
            done = run(f"{command} {same} --device cpu --save_dir", save_dir)
            best = metrics(save_dir, "best.pth")[-1]
        r[f"{name}_seconds"] = done.seconds
        r[quality] = best["val_neg_elbo"]
        if name == "seed_objective":
            r[quality] = 1837.5 * best["val_recon_loss"] + best["val_kld_loss"]
    return r | {"ratio": r["conventional_seconds"] / r["ours_seconds"]}


def median_and_range(values: list[float], form: str = ".2f") -> str:
    """A cell of the table: "median (lowest to highest)"."""
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def table(rounds: list[dict[str, float]]) -> str:
    """Medians and ranges over the rounds in Markdown, and how many reached the quality."""
    reached = {
        "ours": sum(r["ours_neg_elbo"] <= r["target_neg_elbo"] for r in rounds),
        "seed_objective": sum(r["seed_objective"] <= SEED_PROJECT for r in rounds),
    }
    lines = ["| command | seconds | times faster | epochs of conventional.py | quality | reached |"]
    lines.append("|---|---|---|---|---|---|")
    for name, (command, quality) in COMMANDS.items():
        seconds = [r[f"{name}_seconds"] for r in rounds]
        times = [r["conventional_seconds"] / r[f"{name}_seconds"] for r in rounds]
        epochs = [r[f"{name}_seconds"] / r["conventional_epoch_seconds"] for r in rounds]
        cells = [f"`{command}`", median_and_range(seconds, ".1f")]
        cells += [median_and_range(times), median_and_range(epochs)]
        kind = "objective" if quality == "seed_objective" else "-ELBO"
        cells.append(f"{kind} {median_and_range([r[quality] for r in rounds])}")
        cells.append(f"{reached[name]} of {len(rounds)}" if name in reached else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = cli.parser("Measures seconds to a quality beside the conventional loop's.")
    add, images = parser.add_argument, cli.number(1, 50_000)
    add("--n_rounds", type=cli.number(1), default=3, help="each with a seed of its own")
    add("--n_train", type=images, default=50_000, help="images; fewer only to try this script")
    add("--json", action="store_true", help="print the medians as JSON too, on the last line")
    args = parser.parse_args()
    print(machine("--device cpu"), flush=True)
    with TemporaryDirectory() as folder:
        extract_mnist(folder)  # once, outside of the times
        seeds = range(cli.SEED, cli.SEED + args.n_rounds)
        rounds = [measure(folder, seed, args.n_train) for seed in seeds]
    print(f"medians (ranges) of {args.n_rounds} rounds; quality on the validation images, in nats;")
    print(f"to be reached: conventional.py's -ELBO, and an objective of {SEED_PROJECT:.2f}\n")
    print(table(rounds))
    if args.json:
        print(json.dumps({key: median(r[key] for r in rounds) for key in rounds[0]}))


if __name__ == "__main__":
    cli.run(main)
