"""The course of training: -ELBO, recon_loss and kld_loss of one or more runs.

python3 vis/curves/main.py --metrics pretrained/vae_mnist.csv
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from utils import cli
from utils.cli import UserError
from vis.common import plt, save_figure

PANELS = {  # column without its prefix -> label of its axis
    "neg_elbo": "-ELBO (nats per image)",
    "recon_loss": "recon_loss (mean over pixels)",
    "kld_loss": "kld_loss (nats per image)",
}


def read_metrics(path: Path) -> np.ndarray:
    """The columns of a metrics.csv, by name. Raises UserError."""
    try:
        run = np.atleast_1d(np.genfromtxt(path, delimiter=",", names=True))
        run[["epoch", *(f"{split}_{name}" for split in ("train", "val") for name in PANELS)]]
        return run
    except (OSError, LookupError, ValueError, TypeError) as error:
        raise UserError(f"{path} is not a metrics.csv that train.py wrote ({error}).") from error


def main() -> None:
    parser = cli.parser("Plots the metrics of one or more runs.")
    add = parser.add_argument
    add("--metrics", type=Path, nargs="+", required=True, help="metrics.csv of each run")
    add("--save_dir", type=Path, default=Path("figures"), help="folder of the figure")
    args = parser.parse_args()
    runs = [read_metrics(path) for path in args.metrics]

    figure, panels = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
    for panel, (column, label) in zip(panels, PANELS.items(), strict=True):
        for i, (path, run) in enumerate(zip(args.metrics, runs, strict=True)):
            name = path.parent.name if path.name == "metrics.csv" else path.stem
            for split, style in (("train", ":"), ("val", "-")):
                look = {"color": f"C{i}", "linestyle": style, "label": f"{name}, {split}"}
                panel.plot(run["epoch"], run[f"{split}_{column}"], **look)
        panel.set(xlabel="epoch", ylabel=label)
    lines = panels[0].get_lines()  # all panels have the same legend
    figure.legend(handles=lines, loc="outside upper center", ncols=2, frameon=False)
    save_figure(figure, args.save_dir, "curves")


if __name__ == "__main__":
    cli.run(main)
