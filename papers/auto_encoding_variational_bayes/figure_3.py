"""The paper's figure 3: marginal log-likelihood with AEVB, wake-sleep and Monte Carlo EM.

python3 papers/auto_encoding_variational_bayes/figure_3.py

The networks have 100 hidden units and 3 latent dimensions. We train on 1,000 or 50,000 images. The
curves show Appendix D's estimates. Quadrature gives the exact value at each curve's last point.
"""

import sys
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from torch import Tensor

from estimators import NOISE_SEED, grid_nll
from model import VAE
from papers.auto_encoding_variational_bayes.experiment import ALGORITHMS, N_TRAIN, Network
from papers.auto_encoding_variational_bayes.inference import estimate_evidence
from papers.auto_encoding_variational_bayes.runner import draw, figure_rows, make_parser
from utils import cli
from utils.device import rng

SIZES, LATENT_DIM = (1000, N_TRAIN), 3
N_IMAGES = 1000  # images of a split whose log p(x) is estimated
N_GRID, GRID_LIMIT = 61, 4.5  # outside [-4.5, 4.5]^3 the prior has 2e-5 of its mass


def evidence(model: VAE, images: Tensor, is_last: bool) -> dict[str, float]:
    """Mean log p(x) in nats by estimator, for the first N_IMAGES images (N, 1, 28, 28) uint8."""
    images = images[:N_IMAGES]
    nats = {"appendix D": estimate_evidence(model, images, rng(NOISE_SEED)).mean().item()}
    if is_last:
        nats["grid"] = -grid_nll(model, images, N_GRID, GRID_LIMIT).mean().item()
    return nats


def main() -> None:
    parser = make_parser("Reproduces figure 3 of the paper.")
    add = parser.add_argument
    add("--n_train", type=int, choices=SIZES, nargs="+", default=SIZES, help="training images")
    add("--algorithm", choices=ALGORITHMS, nargs="+", default=ALGORITHMS, help="training methods")
    args = parser.parse_args()
    pairs = product(args.algorithm, args.n_train)
    networks = [Network(name, LATENT_DIM, figure=3, n_train=n) for name, n in pairs]
    rows = figure_rows(networks, evidence, args)
    panels = {str(n): f"$N_{{train}}$ = {n:,}" for n in SIZES}
    rows = [row for row in rows if row["estimator"] == "appendix D"]
    axes = {"ylabel": "marginal log-likelihood (nats per image)", "ylim": (-170, -100)}
    draw(rows, "n_train", panels, args.save_dir, **axes)


if __name__ == "__main__":
    cli.run(main)
