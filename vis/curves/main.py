"""Training curves: -ELBO and kld_loss of one or more runs.

python3 vis/curves/main.py --metrics pretrained/vae_mnist.csv
"""

import csv
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from utils import cli
from utils.cli import UserError
from vis.common import figures_of, plt, save_figure

PANELS = {"neg_elbo": "-ELBO", "kld_loss": "kld_loss"}  # metric without train_ or val_ -> label
NOTE = "solid: validation; dotted: training (with --deform on deformed images)"


def read_metrics(path: Path) -> dict[str, np.ndarray]:
    """The columns of a run's metrics.csv. Raises UserError."""
    try:
        rows = list(csv.DictReader(path.read_text().splitlines()))
        columns = ("epoch", *(f"{split}_{name}" for split in ("train", "val") for name in PANELS))
        run = {name: np.array([float(row[name]) for row in rows]) for name in columns}
        run["epoch"][-1]  # fails without rows
    except (OSError, LookupError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path} is not a metrics.csv that train.py wrote ({error}).") from error
    return run


def draw(panel: plt.Axes, column: str, runs: list[dict]) -> None:
    """Draws each run in its own colour with its last validation value.

    The vertical axis ignores each run's first tenth, whose steepness would flatten the rest.
    """
    settled = []
    for i, run in enumerate(runs):
        epochs = run["epoch"]
        for split, style in (("train", ":"), ("val", "-")):
            values = run[f"{split}_{column}"]
            panel.plot(epochs, values, f"C{i}{style}", linewidth=1.2)
            settled += values[epochs > epochs[-1] / 10].tolist()
        panel.text(epochs[-1], values[-1], f" {values[-1]:.2f}", color=f"C{i}", va="center")
    margin = 0.05 * (max(settled) - min(settled))
    panel.set(xlabel="epoch", ylim=(min(settled) - margin, max(settled) + margin))
    panel.set_xlim(0, 1.4 * panel.dataLim.x1)  # leaves space for the printed values


def main() -> None:
    parser = cli.parser("Plots the metrics of one or more runs.")
    parser.add_argument("--metrics", type=Path, nargs="+", required=True, help="CSV file per run")
    parser.add_argument("--save_dir", type=Path, help="folder (default: figures/<first run>)")
    args = parser.parse_args()
    folders, runs = [*map(figures_of, args.metrics)], [*map(read_metrics, args.metrics)]
    figure, panels = plt.subplots(1, 2, figsize=(6.5, 3.8), layout="constrained")
    for panel, (column, label) in zip(panels, PANELS.items(), strict=True):
        draw(panel, column, runs)
        panel.set_ylabel(f"{label} (nats per image)")
    lines = [plt.Line2D([], [], color=f"C{i}", label=path.name) for i, path in enumerate(folders)]
    figure.legend(handles=lines, title=NOTE, loc="outside upper center", frameon=False)
    save_figure(figure, args.save_dir or folders[0], "curves")


if __name__ == "__main__":
    cli.run(main)
