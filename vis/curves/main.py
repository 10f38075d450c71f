"""The course of training: -ELBO and kld_loss of one or more runs.

python3 vis/curves/main.py --metrics pretrained/vae_mnist.csv

The figure appends a late phase if <name>_late.csv lies beside the metrics of its run.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from utils import cli
from utils.cli import UserError
from vis.common import plt, run_name, save_figure

PANELS = {"neg_elbo": "-ELBO", "kld_loss": "kld_loss"}  # column without its prefix -> label
NOTE = "solid: validation; dotted: training (with --deform on deformed images);\nthick: late phase"


def read_metrics(path: Path) -> list[np.ndarray]:
    """The columns of a metrics.csv, by name, and those of its late phase. Raises UserError."""
    try:
        run = np.atleast_1d(np.genfromtxt(path, delimiter=",", names=True))
        run[["epoch", *(f"{split}_{name}" for split in ("train", "val") for name in PANELS)]]
    except (OSError, LookupError, ValueError, TypeError) as error:
        raise UserError(f"{path} is not a metrics.csv that train.py wrote ({error}).") from error
    phases, late = [run], path.with_stem(f"{path.stem}_late")
    if late.is_file():
        phases += read_metrics(late)
        phases[1]["epoch"] += run["epoch"][-1]
    return phases


def draw(panel: plt.Axes, column: str, runs: list[list[np.ndarray]]) -> None:
    """One colour a run, thick in its late phase, and its last validation value.

    The axis leaves out each run's first tenth, which is so steep that it would flatten the rest.
    """
    settled = []
    for i, phases in enumerate(runs):
        for phase, width in zip(phases, (1.2, 2.5), strict=False):
            for split, style in (("train", ":"), ("val", "-")):
                epochs, values = phase["epoch"], phase[f"{split}_{column}"]
                panel.plot(epochs, values, f"C{i}{style}", linewidth=width)
                settled += values[epochs > phases[0]["epoch"][-1] / 10].tolist()
        panel.text(epochs[-1], values[-1], f" {values[-1]:.2f}", color=f"C{i}", va="center")
    margin = 0.05 * (max(settled) - min(settled))
    panel.set(xlabel="epoch", ylim=(min(settled) - margin, max(settled) + margin))
    panel.set_xlim(0, 1.3 * panel.dataLim.x1)  # leaves space for the last values


def main() -> None:
    parser = cli.parser("Plots the metrics of one or more runs.")
    add = parser.add_argument
    add("--metrics", type=Path, nargs="+", required=True, help="metrics.csv of each run")
    add("--save_dir", type=Path, help="folder of the figure (default: figures/<first run's name>)")
    args = parser.parse_args()
    names, runs = map(run_name, args.metrics), list(map(read_metrics, args.metrics))
    figure, panels = plt.subplots(1, 2, figsize=(6.5, 3.8), layout="constrained")
    for panel, (column, label) in zip(panels, PANELS.items(), strict=True):
        draw(panel, column, runs)
        panel.set_ylabel(f"{label} (nats per image)")
    lines = [plt.Line2D([], [], color=f"C{i}", label=name) for i, name in enumerate(names)]
    figure.legend(handles=lines, title=NOTE, loc="outside upper center", frameon=False)
    save_figure(figure, args.save_dir or Path("figures", run_name(args.metrics[0])), "curves")


if __name__ == "__main__":
    cli.run(main)
