"""Trains and evaluates each recipe with several seeds and prints the spread of results.

Each run becomes a row of the CSV as soon as it ends. A run that has a row is not repeated.
"""

import csv
import math
import sys
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.common import evaluate, machine, train
from loss import N_PIXELS
from utils import cli
from utils.files import write_file
from vis.common import plt, save_figure

LOSSES = {  # name -> flags, for losses of popular implementations (docs/losses.md)
    "bce 784": "--recon_weight 784",
    "bce 784, dynamic": "--recon_weight 784 --binarize dynamic",
    "bce 600": "--recon_weight 600",
}
LOSSES |= {
    f"mse {w}": f"--recon_loss mse --recon_weight {w}" for w in (4000, 2560, 1837.5, 784, 392)
}
BETAS = {f"bce {w}": f"--recon_weight {w}" for w in (7840, 1568, 392, 196, 78)}
RECIPES = {  # set -> recipe -> flags of train.py
    "seeds": {"default": ""},
    "losses": LOSSES | BETAS | {f"{n}, 20-d": f"{f} --latent_dim 20" for n, f in LOSSES.items()},
}
N_SAMPLES = {"seeds": "1", "losses": "50 --binarize dynamic"}  # K and flags of evaluate.py
METRICS = ("val_recon_loss", "val_kld_loss", "val_neg_elbo", "gaussian_neg_elbo", "test_neg_elbo")
METRICS += ("nll", "active_units", "knn_accuracy", "train_seconds")
COLUMNS = ("recipe", "seed", "flags", *METRICS)


def measure(recipe: str, flags: str, seed: int, n_samples: str, strips: Path) -> dict:
    """A row of the CSV: one run of train.py and one of evaluate.py. Raises UserError.

    The samples of the best epoch go to the folder `strips`.
    """
    with TemporaryDirectory() as folder:
        best = train(f"train.py {flags} --seed {seed}", folder)
        test = evaluate(f"evaluate.py --n_importance_samples {n_samples}", folder)
        samples = Path(folder, "samples", f"epoch_{best['epoch']:04d}.png")
        write_file(strips / f"{recipe}_{seed}.png", lambda file: file.write(samples.read_bytes()))
    row = {"recipe": recipe, "seed": seed, "flags": flags} | best | test
    row |= {"test_neg_elbo": test["neg_elbo"], "train_seconds": best["run_seconds"]}
    variance = best["val_recon_loss"] if "mse" in flags else math.nan  # optimal for a Gaussian
    nll = N_PIXELS / 2 * math.log(2 * math.pi * math.e * variance)
    row["gaussian_neg_elbo"] = nll + best["val_kld_loss"]
    return {name: row[name] for name in COLUMNS}


def row_of_table(recipe: str, rows: list[dict]) -> str:
    """Mean and standard deviation of each metric over a recipe's rows of the CSV."""
    cells = [recipe, str(len(rows))]
    for name in METRICS:
        values = [float(row[name]) for row in rows]
        is_spread = len(values) > 1 and not math.isnan(values[0])
        spread = f" +- {stdev(values):.2g}" if is_spread else ""
        cells.append(f"{mean(values):.5g}{spread}")
    return f"| {' | '.join(cells)} |"


def draw_strips(strips: Path) -> None:
    """Draws strips.png: ten samples from the first run of each loss, in 2 and 20 dimensions."""
    size = (10, 0.5 * len(LOSSES))
    figure, axes = plt.subplots(len(LOSSES), 2, figsize=size, layout="constrained")
    for row, name in zip(axes, LOSSES, strict=True):
        for plane, suffix in zip(row, ("", ", 20-d"), strict=True):
            plane.imshow(plt.imread(strips / f"{name}{suffix}_{cli.SEED}.png")[:28])
            plane.set(xticks=[], yticks=[])
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    for plane, title in zip(axes[0], ("2 dimensions", "20 dimensions"), strict=True):
        plane.set_title(title)
    save_figure(figure, strips.parent, "strips")


def main() -> None:
    parser = cli.parser("Trains and evaluates recipes with several seeds.")
    parser.add_argument("--recipes", choices=RECIPES, default="seeds", help="set of recipes")
    parser.add_argument("--n_seeds", type=cli.number(1), default=5, help=f"seeds, from {cli.SEED}")
    parser.add_argument("--save_to", type=Path, default="runs/seeds.csv", help="CSV of all runs")
    args = parser.parse_args()
    print(f"{machine('')}\n\n| recipe | n | {' | '.join(METRICS)} |")
    print("|---" * (len(METRICS) + 2) + "|", flush=True)
    if not args.save_to.exists():
        header = ",".join(COLUMNS) + "\n"
        write_file(args.save_to, lambda file: file.write(header.encode()))
    with open(args.save_to, newline="") as file:
        known = {(row["seed"], row["flags"]): row for row in csv.DictReader(file)}
    strips = args.save_to.with_name("strips")
    for recipe, flags in RECIPES[args.recipes].items():
        rows = []
        for seed in range(cli.SEED, cli.SEED + args.n_seeds):
            row = known.get((str(seed), flags))
            if row is None:
                row = measure(recipe, flags, seed, N_SAMPLES[args.recipes], strips)
                with open(args.save_to, "a", newline="") as file:
                    csv.DictWriter(file, COLUMNS).writerow(row)
            rows.append(row)
        print(row_of_table(recipe, rows), flush=True)
    if args.recipes == "losses":
        draw_strips(strips)


if __name__ == "__main__":
    cli.run(main)
