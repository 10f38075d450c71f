"""The paper's figure 5: random samples from models with 2, 5, 10 and 20 latent dimensions.

python3 papers/auto_encoding_variational_bayes/figure_5.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from papers.auto_encoding_variational_bayes.experiment import Network
from papers.auto_encoding_variational_bayes.runner import bound, make_parser, train
from utils import cli
from utils.device import rng
from vis.common import plt, save_figure, tile

LATENT_DIMS, N_ROWS = (2, 5, 10, 20), 10


def main() -> None:
    args = make_parser("Reproduces figure 5 of the paper.").parse_args()
    figure, all_axes = plt.subplots(1, len(LATENT_DIMS), figsize=(12, 3.2))
    for axes, latent_dim in zip(all_axes, LATENT_DIMS, strict=True):
        model = train(Network("AEVB", latent_dim), bound, args)
        images = model.sample(N_ROWS**2, rng(args.seed))  # (100, 1, 28, 28)
        axes.imshow(tile(images, N_ROWS).numpy(), cmap="gray", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[], title=f"{latent_dim} dimensions")
    save_figure(figure, args.save_dir, "figure_5")


if __name__ == "__main__":
    cli.run(main)
