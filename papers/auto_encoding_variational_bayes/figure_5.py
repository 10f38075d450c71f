"""The paper's figure 5: random samples of models with 2, 5, 10 and 20 latent dimensions.

python3 papers/auto_encoding_variational_bayes/figure_5.py --n_samples 1000000
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from utils import cli
from utils.device import rng
from utils.images import tile

from papers.auto_encoding_variational_bayes.experiment import Network
from papers.auto_encoding_variational_bayes.runner import (
    bound,
    experiment_of,
    make_parser,
    run_networks,
    trained_model,
)
from vis.common import plt, save_figure

LATENT_DIMS, N_ROWS = (2, 5, 10, 20), 10


def main() -> None:
    args = make_parser("Reproduces figure 5 of the paper.", n_samples=1_000_000).parse_args()
    networks = [Network("AEVB", latent_dim) for latent_dim in LATENT_DIMS]
    experiment = experiment_of(5, bound, args)
    run_networks(networks, experiment, args.n_processes)
    figure, all_axes = plt.subplots(1, len(networks), figsize=(12, 3.2))
    for axes, network in zip(all_axes, networks, strict=True):
        model = trained_model(network, experiment)
        images = model.sample(N_ROWS**2, rng(args.seed))  # (100, 1, 28, 28)
        axes.imshow(tile(images, N_ROWS).numpy(), cmap="gray", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[], title=f"{network.latent_dim} dimensions")
    save_figure(figure, args.save_dir, "figure_5")


if __name__ == "__main__":
    cli.run(main)
