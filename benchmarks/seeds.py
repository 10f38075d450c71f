"""How far results spread from seed to seed: trains and evaluates each recipe from several seeds.

    python3 benchmarks/seeds.py --n_seeds 5 --save_to runs/seeds.csv

Each run becomes a row of the CSV as soon as it ends. A run that has a row is not repeated.
"""

import csv
import json
import sys
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.common import OURS, SEED_OBJECTIVE, machine, metrics, run
from utils import cli
from utils.cli import SEED
from utils.files import write_file

RECIPES = {"default": "", "seed_objective": SEED_OBJECTIVE, "20d": OURS}  # flags of train.py
METRICS = ("val_recon_loss", "val_kld_loss", "val_neg_elbo", "test_neg_elbo")
METRICS += ("active_units", "knn_accuracy", "train_seconds")
COLUMNS = ("recipe", "seed", "flags", *METRICS)


def measure(recipe: str, seed: int) -> dict:
    """A row of the CSV: one run of train.py and one of evaluate.py. Raises UserError."""
    row = {"recipe": recipe, "seed": seed, "flags": RECIPES[recipe]}
    with TemporaryDirectory() as folder:
        done = run(f"train.py {RECIPES[recipe]} --seed {seed} --save_dir", folder)
        evaluate = "evaluate.py --n_importance_samples 1 --json --model_params"
        test = json.loads(run(evaluate, Path(folder, "best.pth")).lines[-1])
        row |= test | metrics(folder, "best.pth")[-1]
    row |= {"test_neg_elbo": test["neg_elbo"], "train_seconds": done.seconds}
    return {name: row[name] for name in COLUMNS}


def table(rows: list[dict], recipes: list[str]) -> str:
    """Mean and standard deviation over the seeds of each recipe, in Markdown."""
    lines = [f"| recipe | n | {' | '.join(METRICS)} |", "|---" * (len(METRICS) + 2) + "|"]
    for recipe in recipes:
        mine = [row for row in rows if row["recipe"] == recipe]
        cells = [recipe, str(len(mine))]
        for name in METRICS:
            values = [float(row[name]) for row in mine]
            spread = f" +- {stdev(values):.2g}" if len(values) > 1 else ""
            cells.append(f"{mean(values):.5g}{spread}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = cli.parser("Trains and evaluates recipes from several seeds.")
    add, names = parser.add_argument, list(RECIPES)
    add("--recipes", nargs="+", choices=names, default=names, help="which of RECIPES")
    add("--n_seeds", type=cli.number(1), default=5, help=f"seeds {SEED}, {SEED + 1}, ...")
    add("--save_to", type=Path, default=Path("runs/seeds.csv"), help="the CSV, one row per run")
    args = parser.parse_args()
    print(f"{machine('')}\n", flush=True)
    if not args.save_to.exists():
        write_file(args.save_to, f"{','.join(COLUMNS)}\n".encode())
    with open(args.save_to, newline="") as file:
        done = {(row["recipe"], row["seed"], row["flags"]): row for row in csv.DictReader(file)}
    rows = []
    for seed in range(SEED, SEED + args.n_seeds):
        for recipe in args.recipes:
            row = done.get((recipe, str(seed), RECIPES[recipe]))
            if row is None:
                row = measure(recipe, seed)
                with open(args.save_to, "a", newline="") as file:
                    csv.DictWriter(file, COLUMNS).writerow(row)
            rows.append(row)
    print(table(rows, args.recipes))


if __name__ == "__main__":
    cli.run(main)
