"""The paper's figure 3: marginal log-likelihood by AEVB, wake-sleep and Monte Carlo EM.

python3 papers/auto_encoding_variational_bayes/figure_3.py --n_samples 1000000

100 units, 3 latent dimensions, 1,000 or 50,000 training images. The estimate is that of Appendix D;
at the end of each curve stands the exact value, by a grid in three dimensions.
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from utils import cli
from utils.device import rng

from torch import Tensor

from estimators import NOISE_SEED
from model import VAE
from papers.auto_encoding_variational_bayes.experiment import ALGORITHMS, N_TRAIN, Network
from papers.auto_encoding_variational_bayes.inference import estimate_evidence, grid_evidence
from papers.auto_encoding_variational_bayes.runner import (
    draw_curves,
    experiment_of,
    make_parser,
    print_comparison,
    run_networks,
)
from vis.common import save_figure

SIZES = (1000, N_TRAIN)
LATENT_DIM, N_HIDDEN = 3, 100


def evidence(model: VAE, images: Tensor, is_last: bool, n_images: int) -> dict[str, float]:
    """log p(x) of the first images (N, 1, 28, 28) uint8: nats per image, by estimator."""
    images = images[:n_images]
    nats = {"appendix D": estimate_evidence(model, images, rng(NOISE_SEED)).mean().item()}
    return nats | ({"grid": grid_evidence(model, images).mean().item()} if is_last else {})


def main() -> None:
    parser = make_parser("Reproduces figure 3 of the paper.", n_samples=1_000_000)
    add = parser.add_argument
    add("--n_train", type=int, choices=SIZES, nargs="+", default=SIZES, help="training images")
    add("--n_images", type=cli.integer(1, 10_000), default=1000, help="of each split to estimate")
    args = parser.parse_args()
    measure = partial(evidence, n_images=args.n_images)
    networks = [
        Network(algorithm, LATENT_DIM, N_HIDDEN, n_train)
        for algorithm in reversed(ALGORITHMS)  # the slowest first
        for n_train in args.n_train
    ]
    rows = run_networks(networks, experiment_of(3, measure, args), args.n_processes)
    draw(rows, args.save_dir)
    print_comparison(rows)


def draw(rows: list[dict[str, str]], save_dir: Path) -> None:
    """Writes figure_3.png. Raises UserError."""
    panels = {f"$N_{{train}}$ = {n:,}": {"figure": "3", "n_train": str(n)} for n in SIZES}
    estimates = [row for row in rows if row["estimator"] == "appendix D"]
    figure = draw_curves(estimates, panels)
    figure.axes[0].set(ylim=(-170, -100), ylabel="marginal log-likelihood (nats per image)")
    save_figure(figure, save_dir, "figure_3")


if __name__ == "__main__":
    cli.run(main)
