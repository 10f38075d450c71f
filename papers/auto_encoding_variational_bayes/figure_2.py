"""The paper's figure 2 on MNIST: the lower bound against training samples, for five sizes of z.

python3 papers/auto_encoding_variational_bayes/figure_2.py --n_samples 1000000
python3 papers/auto_encoding_variational_bayes/figure_2.py --recipe ours --n_samples 1000000

AEVB and wake-sleep with the paper's recipe; AEVB with 0.01 read as the variance of the initial
weights; or AEVB with our recipe: AdamW with warm-up, PyTorch's initial weights,
the mean image as output bias and a posterior variance of at most 1.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from utils import cli

from papers.auto_encoding_variational_bayes.experiment import BINARIZE, RECIPES, Network
from papers.auto_encoding_variational_bayes.runner import (
    bound,
    draw_curves,
    experiment_of,
    make_parser,
    print_comparison,
    run_networks,
)
from vis.common import save_figure

LATENT_DIMS, ALGORITHMS = (3, 5, 10, 20, 200), ("AEVB", "wake-sleep")


def main() -> None:
    parser = make_parser("Reproduces figure 2 of the paper on MNIST.", n_samples=1_000_000)
    add, sizes = parser.add_argument, {"type": int, "choices": LATENT_DIMS, "nargs": "+"}
    add("--recipe", choices=RECIPES, default="paper", help="how the networks are trained")
    add("--latent_dims", **sizes, default=LATENT_DIMS, help="sizes of z")
    add("--algorithms", choices=ALGORITHMS, nargs="+", default=ALGORITHMS, help="by recipe paper")
    add("--binarize", choices=BINARIZE, default=Network.binarize, help="grey, drawn once or anew")
    args = parser.parse_args()
    algorithms = args.algorithms if args.recipe == "paper" else ("AEVB",)
    networks = [
        Network(algorithm, latent_dim, recipe=args.recipe, binarize=args.binarize)
        for latent_dim in args.latent_dims
        for algorithm in algorithms
    ]
    rows = run_networks(networks, experiment_of(2, bound, args), args.n_processes)
    draw(rows, args.binarize, args.save_dir)
    print_comparison(rows)


def draw(rows: list[dict[str, str]], binarize: str, save_dir: Path) -> None:
    """Writes figure_2.png. Raises UserError."""
    rows = [row for row in rows if row["binarize"] == binarize]
    panels = {f"$N_z$ = {n}": {"figure": "2", "latent_dim": str(n)} for n in LATENT_DIMS}
    figure = draw_curves(rows, panels)
    figure.axes[0].set(ylim=(-155, -88), xlim=(1e5, 4e8), ylabel="lower bound (nats per image)")
    save_figure(figure, save_dir, "figure_2")


if __name__ == "__main__":
    cli.run(main)
