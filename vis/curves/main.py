"""The course of training: loss, -ELBO, recon_loss and kld_loss of one or more runs on the same axes.

python3 vis/curves/main.py --metrics pretrained/vae_mnist.csv
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import csv

import cli
from errors import UserError
from vis.common import DIGIT_COLOURS, plt, save_figure

PANELS = {  # column without its prefix -> what its axis says
    "loss": "loss",
    "neg_elbo": "-ELBO (nats per image)",
    "recon_loss": "recon_loss (mean over pixels)",
    "kld_loss": "kld_loss (nats per image)",
}


def read_metrics(path: Path, recon_weight: float) -> list[dict[str, float]]:
    """The rows of a metrics.csv, with the loss. Raises UserError."""
    try:
        with open(path, newline="") as file:
            rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
        for row in rows:
            for split in ("train", "val"):
                row[f"{split}_loss"] = recon_weight * row[f"{split}_recon_loss"] + row[f"{split}_kld_loss"]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give the metrics.csv of a run.") from error
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} is not a metrics.csv that train.py wrote ({error}).") from error
    if not rows:
        raise UserError(f"{path} holds no epoch yet; wait for the first one to end.")
    return rows


def main() -> None:
    parser = cli.parser("Plots the metrics of one or more runs.")
    parser.add_argument("--metrics", type=Path, nargs="+", required=True, help="metrics.csv of each run")
    parser.add_argument("--save_dir", type=Path, default=Path("figures"), help="folder for the PNG")
    parser.add_argument("--recon_weight", type=cli.number(1e-6, 1e6), default=600.0, help="of the runs, for their loss")
    args = parser.parse_args()
    runs = {path: read_metrics(path, args.recon_weight) for path in args.metrics}

    figure, panels = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    for panel, (column, label) in zip(panels.flat, PANELS.items(), strict=True):
        for i, (path, run) in enumerate(runs.items()):
            colour = DIGIT_COLOURS[i % len(DIGIT_COLOURS)]
            name = path.parent.name if path.name == "metrics.csv" else path.stem
            for split, style in (("train", ":"), ("val", "-")):
                values = [row[f"{split}_{column}"] for row in run]
                panel.plot([row["epoch"] for row in run], values, color=colour, linestyle=style, label=f"{name}, {split}")
        panel.set(xlabel="epoch", ylabel=label)
        panel.grid(alpha=0.3)
    panels[0, 0].legend(frameon=False)
    save_figure(figure, args.save_dir, "curves")


if __name__ == "__main__":
    cli.run(main)
