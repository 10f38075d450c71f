"""How far results spread from seed to seed: trains and evaluates each recipe from several seeds.

Each run becomes a row of the CSV as soon as it ends. A run that has a row is not repeated.
"""

import csv
import sys
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.common import OURS, SEED_OBJECTIVE, evaluate, machine, train
from utils import cli
from utils.files import write_file

RECIPES = {"default": "", "seed_objective": SEED_OBJECTIVE, "20d": OURS}  # flags of train.py
METRICS = ("val_recon_loss", "val_kld_loss", "val_neg_elbo", "test_neg_elbo")
METRICS += ("active_units", "knn_accuracy", "train_seconds")
COLUMNS = ("recipe", "seed", "flags", *METRICS)


def measure(recipe: str, seed: int) -> dict:
    """A row of the CSV: one run of train.py and one of evaluate.py. Raises UserError."""
    with TemporaryDirectory() as folder:
        best = train(f"train.py {RECIPES[recipe]} --seed {seed}", folder)
        test = evaluate("evaluate.py --n_importance_samples 1", folder)
    row = {"recipe": recipe, "seed": seed, "flags": RECIPES[recipe]} | best | test
    row |= {"test_neg_elbo": test["neg_elbo"], "train_seconds": best["run_seconds"]}
    return {name: row[name] for name in COLUMNS}


def row_of_table(recipe: str, rows: list[dict]) -> str:
    """Mean and standard deviation of each metric over a recipe's rows of the CSV."""
    cells = [recipe, str(len(rows))]
    for name in METRICS:
        values = [float(row[name]) for row in rows]
        spread = f" +- {stdev(values):.2g}" if len(values) > 1 else ""
        cells.append(f"{mean(values):.5g}{spread}")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = cli.parser("Trains and evaluates recipes from several seeds.")
    parser.add_argument("--n_seeds", type=cli.number(1), default=5, help=f"from {cli.SEED} on")
    parser.add_argument("--save_to", type=Path, default="runs/seeds.csv", help="one row per run")
    args = parser.parse_args()
    print(f"{machine('')}\n\n| recipe | n | {' | '.join(METRICS)} |")
    print("|---" * (len(METRICS) + 2) + "|", flush=True)
    if not args.save_to.exists():
        write_file(args.save_to, f"{','.join(COLUMNS)}\n".encode())
    with open(args.save_to, newline="") as file:
        known = {(row["seed"], row["flags"]): row for row in csv.DictReader(file)}
    for recipe, flags in RECIPES.items():
        rows = []
        for seed in range(cli.SEED, cli.SEED + args.n_seeds):
            row = known.get((str(seed), flags))
            if row is None:
                row = measure(recipe, seed)
                with open(args.save_to, "a", newline="") as file:
                    csv.DictWriter(file, COLUMNS).writerow(row)
            rows.append(row)
        print(row_of_table(recipe, rows), flush=True)


if __name__ == "__main__":
    cli.run(main)
