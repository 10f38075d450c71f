"""The paper's figure 4: the manifold of digits that a two-dimensional model has learned.

python3 papers/auto_encoding_variational_bayes/figure_4.py --n_samples 1000000

The paper's network. A digit stands where the inverse Gaussian distribution function puts a point of
the unit square, so each has the same share of the prior (Appendix A).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from utils import cli

import torch

from papers.auto_encoding_variational_bayes.experiment import Network
from papers.auto_encoding_variational_bayes.runner import (
    bound,
    experiment_of,
    make_parser,
    run_networks,
    trained_model,
)
from vis.common import draw_grid, save_figure

N_CELLS = 20  # along each axis


@torch.inference_mode()
def main() -> None:
    args = make_parser("Reproduces figure 4 of the paper.", n_samples=1_000_000).parse_args()
    network, experiment = Network("AEVB", latent_dim=2), experiment_of(4, bound, args)
    run_networks([network], experiment, args.n_processes)
    quantiles = torch.special.ndtri((torch.arange(N_CELLS) + 0.5) / N_CELLS)
    z = torch.cartesian_prod(quantiles.flip(0), quantiles).flip(1)  # (400, 2): up, and to the right
    images = torch.sigmoid(trained_model(network, experiment).decode(z))
    axes = draw_grid(images, N_CELLS, "The learned manifold of MNIST", (0, 1, 0, 1))
    axes.set(xlabel=r"$\Phi(z_1)$", ylabel=r"$\Phi(z_2)$")
    save_figure(axes.figure, args.save_dir, "figure_4")


if __name__ == "__main__":
    cli.run(main)
