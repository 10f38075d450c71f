"""How far results spread from seed to seed: trains and evaluates some recipes several times.

    python3 benchmarks/seeds.py --n_seeds 5 --save_to runs/seeds.csv

Each run becomes a row of the CSV as soon as it ends. Runs that have one are not repeated, so a
stopped command goes on where it was.
"""

import csv
import json
import shlex
import statistics
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from utils import cli
from utils.cli import UserError
from utils.flags import Settings
from utils.images import cannot_write

from benchmarks.common import OURS, SEED_OBJECTIVE, metrics, run

RECIPES = {"default": "", "seed_objective": SEED_OBJECTIVE, "20d": OURS}  # flags of train.py
FIGURES = {  # and their decimals
    "val_recon_loss": 4,
    "val_kld_loss": 3,
    "val_neg_elbo": 2,
    "test_neg_elbo": 2,
    "test_nll": 2,
    "active_units": 1,
    "knn_accuracy": 4,
    "train_seconds": 1,
}
COLUMNS = ("recipe", "seed", "flags", "n_importance_samples", *FIGURES)


def measure(recipe: str, seed: int, n_importance_samples: int, save_dir: str | Path) -> dict:
    """A row of COLUMNS: one run of train.py and one of evaluate.py. Raises UserError."""
    flags = shlex.split(RECIPES[recipe])
    trained = run("train.py", *flags, "--seed", str(seed), "--save_dir", save_dir)
    model, K = Path(save_dir, "best.pth"), str(n_importance_samples)
    how = ("--model_params", model, "--n_importance_samples", K, "--json")
    test = json.loads(run("evaluate.py", *how).lines[-1])
    row = {"recipe": recipe, "seed": seed, "flags": RECIPES[recipe], "n_importance_samples": K}
    row |= metrics(model)[-1] | {f"test_{name}": test[name] for name in ("neg_elbo", "nll")}
    row |= {name: test[name] for name in ("active_units", "knn_accuracy")}
    row["train_seconds"] = trained.seconds
    return {name: row[name] for name in COLUMNS}


def append(path: Path, rows: list[dict]) -> None:
    """Adds rows to the CSV, which begins with a header. Raises UserError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if file.tell() == 0:
                writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise cannot_write(path, error) from error


def read(path: Path) -> list[dict[str, str]]:
    """All rows of the CSV. Raises UserError."""
    with open(path, newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    if tuple(reader.fieldnames) != COLUMNS:
        raise UserError(f"{path} has other columns than seeds.py; choose another --save_to.")
    return rows


def missing(rows: list[dict], recipes: list[str], seeds: range, K: int) -> list[tuple[str, int]]:
    """Recipe and seed of each run that has no row yet.

    Raises UserError for a row that was made in another way.
    """
    for row in rows:
        recipe = row["recipe"]
        made = (row["flags"], row["n_importance_samples"])
        if recipe in recipes and made != (RECIPES[recipe], str(K)):
            raise UserError(
                f"the file holds {recipe} with other flags or --n_importance_samples; "
                f"choose another --save_to."
            )
    there = {(row["recipe"], int(row["seed"])) for row in rows}
    return [(recipe, seed) for seed in seeds for recipe in recipes if (recipe, seed) not in there]


def table(rows: list[dict[str, str]], recipes: list[str]) -> str:
    """Mean and standard deviation over the seeds of each recipe, in Markdown."""
    lines = [f"| recipe | n | {' | '.join(FIGURES)} |", "|---" * (len(FIGURES) + 2) + "|"]
    for recipe in recipes:
        mine = [row for row in rows if row["recipe"] == recipe]
        cells = [recipe, str(len(mine))]
        for name, decimals in FIGURES.items():
            values = [float(row[name]) for row in mine]
            cell = f"{statistics.mean(values):.{decimals}f}"
            if len(values) > 1:
                cell += f" +- {statistics.stdev(values):.{decimals}f}"
            cells.append(cell)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = cli.parser("Trains and evaluates recipes from several seeds; mean and deviation.")
    add, names = parser.add_argument, list(RECIPES)
    add("--recipes", nargs="+", choices=names, default=names, help="which of RECIPES")
    seeds = cli.integer(1, 1000)
    add("--n_seeds", type=seeds, default=5, help=f"of {Settings.seed}, {Settings.seed + 1}, ...")
    add("--save_to", type=Path, default=Path("runs/seeds.csv"), help="a row for each run")
    draws = cli.integer(1, 10**6)
    add("--n_importance_samples", type=draws, default=1, metavar="K", help="for the test NLL")
    args = parser.parse_args()
    seeds = range(Settings.seed, Settings.seed + args.n_seeds)
    K = args.n_importance_samples

    append(args.save_to, [])  # fails now, not after the work
    to_do = missing(read(args.save_to), args.recipes, seeds, K)
    for i, (recipe, seed) in enumerate(to_do):
        print(f"{recipe}, seed {seed}; {len(to_do) - i} to do", file=sys.stderr, flush=True)
        with TemporaryDirectory() as save_dir:
            append(args.save_to, [measure(recipe, seed, K, save_dir)])
    print(table(read(args.save_to), args.recipes))


if __name__ == "__main__":
    cli.run(main)
