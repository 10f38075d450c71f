"""Where the encoder puts the test images: their posterior means or standard deviations, coloured by digit.

python3 vis/encoder_output/main.py --model_params pretrained/vae_mnist.pth --target mean
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch

import cli
from vis.common import DIGIT_COLOURS, load_subject, make_parser, plt, save_figure


def principal_components(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first two principal components of (N, L): coordinates (N, 2), and their shares of the variance (2,)."""
    centred = values - values.mean(dim=0)
    variances, axes = torch.linalg.eigh(centred.T @ centred / len(values))  # ascending
    axes = axes[:, [-1, -2]]
    axes = axes * axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()  # a sign that does not depend on the library
    return centred @ axes, variances[[-1, -2]] / variances.sum()


def main() -> None:
    parser = make_parser("Scatter plot of the test set in latent space.")
    parser.add_argument("--target", choices=("mean", "std"), default="mean", help="of the posterior q(z|x)")
    args = parser.parse_args()
    subject = load_subject(args)
    values = subject.mu if args.target == "mean" else torch.exp(0.5 * subject.logvar)  # (N, L)
    symbol, title = {"mean": (r"\mu", "Posterior means"), "std": (r"\sigma", "Posterior standard deviations")}[args.target]
    title = f"{title} of {len(values):,} test images\n{subject.name}"
    labels = [f"${symbol}_1$", f"${symbol}_2$"]
    if values.shape[1] > 2:
        values, shares = principal_components(values)
        labels = [f"principal component {i} of ${symbol}$" for i in (1, 2)]
        title += f": first two principal components, {shares.sum():.0%} of the variance"
    elif values.shape[1] == 1:
        values = torch.stack((values[:, 0], subject.labels), dim=1)
        labels[1] = "digit"

    figure, axes = plt.subplots(figsize=(7.5, 6.5))
    for digit, colour in enumerate(DIGIT_COLOURS):
        x, y = values[subject.labels == digit].T
        axes.scatter(x, y, s=4, color=colour, alpha=0.6, linewidths=0, label=str(digit))
    axes.set(xlabel=labels[0], ylabel=labels[1], title=title)
    if args.target == "mean":
        axes.set_aspect("equal", adjustable="datalim")
    axes.legend(title="digit", markerscale=4, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    save_figure(figure, args.save_dir, f"encoder_output_{args.target}")


if __name__ == "__main__":
    cli.run(main)
