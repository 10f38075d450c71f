"""The course of training: loss, -ELBO, recon_loss and kld_loss of one or more runs.

python3 vis/curves/main.py --metrics pretrained/vae_mnist.csv
"""

import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from utils import cli
from utils.cli import UserError
from utils.flags import Settings

from vis.common import plt, save_figure

PANELS = {  # column without its prefix -> what its axis says
    "loss": "loss",
    "neg_elbo": "-ELBO (nats per image)",
    "recon_loss": "recon_loss (mean over pixels)",
    "kld_loss": "kld_loss (nats per image)",
}


def read_metrics(path: Path, recon_weight: float) -> dict[str, list[float]]:
    """The columns of a metrics.csv, and those of the loss. Raises UserError."""
    try:
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
        run = {name: [float(row[name]) for row in rows] for name in rows[0]}
        for split in ("train", "val"):
            terms = zip(run[f"{split}_recon_loss"], run[f"{split}_kld_loss"], strict=True)
            run[f"{split}_loss"] = [recon_weight * recon + kld for recon, kld in terms]
        return run
    except (OSError, LookupError, ValueError, TypeError) as error:
        raise UserError(f"{path} is not a metrics.csv that train.py wrote ({error}).") from error


def main() -> None:
    parser = cli.parser("Plots the metrics of one or more runs.")
    add = parser.add_argument
    add("--metrics", type=Path, nargs="+", required=True, help="metrics.csv of each run")
    add("--save_dir", type=Path, default=Path("figures"), help="folder for the PNG")
    weights, default = cli.number(1e-6, 1e6), Settings.recon_weight
    add("--recon_weight", type=weights, default=default, help="for the loss")
    args = parser.parse_args()
    runs = [read_metrics(path, args.recon_weight) for path in args.metrics]

    figure, panels = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    for panel, (column, label) in zip(panels.flat, PANELS.items(), strict=True):
        for i, (path, run) in enumerate(zip(args.metrics, runs, strict=True)):
            name = path.parent.name if path.name == "metrics.csv" else path.stem
            for split, style in (("train", ":"), ("val", "-")):
                look = {"color": f"C{i}", "linestyle": style, "label": f"{name}, {split}"}
                panel.plot(run["epoch"], run[f"{split}_{column}"], **look)
        panel.set(xlabel="epoch", ylabel=label)
    lines = panels[0, 0].get_lines()  # the same in each panel
    figure.legend(handles=lines, loc="outside upper center", ncols=2, frameon=False)
    save_figure(figure, args.save_dir, "curves")


if __name__ == "__main__":
    cli.run(main)
