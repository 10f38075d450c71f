"""Plots the test images' posterior means in two latent dimensions, with a colour per digit.

python3 vis/encoder_output/main.py --model_params pretrained/vae_mnist.pth
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from utils import cli
from vis.common import EncodedTestSet, make_parser, plt, save_figure, scatter_digits


def main() -> None:
    args = make_parser("Plots the test set in latent space.").parse_args()
    test_set = EncodedTestSet(args, needs_plane=True)
    figure, axes = plt.subplots(figsize=(5.5, 5.5))
    scatter_digits(axes, test_set.u, test_set.labels, size=5, alpha=0.6)
    title = f"Posterior means of {len(test_set.u):,} test images\n{test_set.name}"
    axes.set(title=title, xlim=(-4, 4), ylim=(-4, 4), aspect="equal", **test_set.axis_labels)
    axes.legend(title="digit", loc="center left", bbox_to_anchor=(1, 0.5))
    save_figure(figure, args.save_dir, "encoder_output_mean")


if __name__ == "__main__":
    cli.run(main)
