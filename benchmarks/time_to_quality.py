"""Measures the time and quality of whole CPU runs of train.py and the conventional loop."""

import json
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.common import machine, run, train
from utils import cli

# Flags with which train.py reaches conventional.py's -ELBO, or the objective of KimRass/VAE.
OURS = "--latent_dim 20 --recon_weight 784 --n_blocks 1 --lr 0.009 --batch_size 96 --n_epochs 1"
SEED_OBJECTIVE = (
    "--recon_loss mse --recon_weight 1837.5 --n_blocks 2 --lr 0.006 --batch_size 128 --n_epochs 3"
)
SEED_PROJECT = 72.40  # KimRass/VAE's validation objective after 84 epochs
COMMANDS = {  # name -> command, key under which `measure` returns its loss
    "conventional": ("conventional.py", "target_neg_elbo"),
    "ours": (f"train.py {OURS}", "ours_neg_elbo"),
    "seed_objective": (f"train.py {SEED_OBJECTIVE}", "seed_objective"),
    "default": ("train.py", "default_neg_elbo"),
}


def measure(seed: int) -> dict[str, float]:
    """Runs each command once; returns the times and losses. Raises UserError."""
    last, cost = run(f"benchmarks/conventional.py --seed {seed}")
    theirs = json.loads(last)
    r = {"conventional_seconds": cost["run_seconds"]}
    r["conventional_epoch_seconds"] = median(theirs["epoch_seconds"])
    r["target_neg_elbo"] = theirs["val_neg_elbo"]
    for name, recon_weight in (("ours", 784), ("seed_objective", 1837.5), ("default", 784)):
        command, quality = COMMANDS[name]
        with TemporaryDirectory() as folder:
            best = train(f"{command} --seed {seed} --device cpu", folder)
        r[f"{name}_seconds"] = best["run_seconds"]
        r[quality] = recon_weight * best["val_recon_loss"] + best["val_kld_loss"]
    return r | {"ratio": r["conventional_seconds"] / r["ours_seconds"]}


def median_and_range(values: list[float], form: str = ".2f") -> str:
    """A cell of the table: "median (lowest to highest)", or the only value."""
    spread = f" ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else ""
    return f"{median(values):{form}}{spread}"


def table(rounds: list[dict[str, float]]) -> str:
    """A Markdown table of medians, ranges and the number of rounds that reached the target."""
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
    parser = cli.parser("Times train.py and the conventional loop up to a quality.")
    add = parser.add_argument
    add("--n_rounds", type=cli.number(1), default=3, help="rounds, each with its own seed")
    add("--json", action="store_true", help="print the medians as JSON too, on the last line")
    args = parser.parse_args()
    run("benchmarks/conventional.py --n_epochs 1 --n_train 1")  # extracts MNIST before any timing
    rounds = [measure(cli.SEED + i) for i in range(args.n_rounds)]
    print(machine("--device cpu"))
    print(f"medians (ranges) of {args.n_rounds} rounds; nats; objective to reach {SEED_PROJECT}\n")
    print(table(rounds))
    if args.json:
        print(json.dumps({key: median(r[key] for r in rounds) for key in rounds[0]}))


if __name__ == "__main__":
    cli.run(main)
