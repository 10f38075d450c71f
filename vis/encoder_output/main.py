"""The test images in latent space: their posteriors' means or standard deviations, by digit.

python3 vis/encoder_output/main.py --model_params pretrained/vae_mnist.pth --target mean
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from utils import cli
from vis.common import EncodedTestSet, make_parser, plt, save_figure, scatter_digits


def principal_components(values: Tensor) -> tuple[Tensor, Tensor]:
    """(N, L) -> coordinates on the first two principal axes (N, 2), shares of the variance (2,)."""
    centred = values - values.mean(dim=0)
    variances, axes = torch.linalg.eigh(centred.T @ centred / len(values))  # ascending
    return centred @ axes[:, [-1, -2]], variances[[-1, -2]] / variances.sum()


def main() -> None:
    parser = make_parser("Scatter plot of the test set in latent space.")
    parser.add_argument("--target", choices=("mean", "std"), default="mean", help="of q(z|x)")
    args = parser.parse_args()
    test_set = EncodedTestSet(args)
    if args.target == "mean":
        values, symbol, title = test_set.mu, r"\mu", "means"
    else:
        values, symbol, title = torch.exp(0.5 * test_set.logvar), r"\sigma", "standard deviations"
    title = f"Posterior {title} of {len(values):,} test images\n{test_set.name}"
    labels = [f"${symbol}_1$", f"${symbol}_2$"]
    if values.shape[1] > 2:
        values, shares = principal_components(values)
        labels = [f"principal component {i} of ${symbol}$" for i in (1, 2)]
        title += f": first two principal components, {shares.sum():.0%} of the variance"
    elif values.shape[1] == 1:
        values, labels[1] = torch.stack((values[:, 0], test_set.labels), dim=1), "digit"

    figure, axes = plt.subplots(figsize=(7.5, 6.5))
    scatter_digits(axes, values, test_set.labels, size=4, alpha=0.6)
    axes.set(xlabel=labels[0], ylabel=labels[1], title=title)
    if args.target == "mean":
        axes.set_aspect("equal", adjustable="datalim")
    axes.legend(title="digit", markerscale=4, loc="center left", bbox_to_anchor=(1, 0.5))
    save_figure(figure, args.save_dir, f"encoder_output_{args.target}")


if __name__ == "__main__":
    cli.run(main)
