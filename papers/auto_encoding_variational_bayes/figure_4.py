"""The paper's figure 4: the manifold of digits that a two-dimensional model has learned.

python3 papers/auto_encoding_variational_bayes/figure_4.py

The normal quantile function maps evenly spaced points of the unit square to z, so
each tile has an equal share of the prior's mass (Appendix A).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch

from papers.auto_encoding_variational_bayes.experiment import Network
from papers.auto_encoding_variational_bayes.runner import bound, make_parser, train
from utils import cli
from vis.common import draw_grid, plane_grid, save_figure

N_CELLS = 20  # along each axis


def main() -> None:
    args = make_parser("Reproduces figure 4 of the paper.").parse_args()
    model = train(Network("AEVB", latent_dim=2), bound, args)
    quantiles = torch.special.ndtri((torch.arange(N_CELLS) + 0.5) / N_CELLS)
    z = plane_grid(quantiles).flatten(0, 1)  # (400, 2): z_2 up, z_1 right
    with torch.no_grad():
        images = torch.sigmoid(model.decode(z))  # (400, 1, 28, 28)
    axes = draw_grid(images, N_CELLS, "The learned manifold of MNIST", (0, 1, 0, 1))
    axes.set(xlabel=r"$\Phi(z_1)$", ylabel=r"$\Phi(z_2)$")
    save_figure(axes.figure, args.save_dir, "figure_4")


if __name__ == "__main__":
    cli.run(main)
