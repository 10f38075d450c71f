"""Decodes a two-dimensional latent space: the manifold of digits, as in the paper's figure 4.

python3 vis/decoder_output/main.py --model_params pretrained/vae_mnist.pth --latent_min -4
python3 vis/decoder_output/main.py --model_params pretrained/vae_mnist.pth --quantile

The plane shows u ~ N(0, I), which the prior maps to z. Without a flow, u is z.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from utils import cli
from utils.cli import number
from vis.common import EncodedTestSet, draw_grid, make_parser, plane_grid, save_figure


def main() -> None:
    parser = make_parser("Decodes a grid of points in the latent plane.")
    add, coordinate = parser.add_argument, number(-100.0, 100.0)
    add("--latent_min", type=coordinate, default=-4.0, help="lowest coordinate on each axis")
    add("--latent_max", type=coordinate, default=4.0, help="highest coordinate on each axis")
    add("--n_cells", type=number(2, 100), default=20, help="digits along each axis")
    add("--quantile", action="store_true", help="space points evenly in prior probability")
    args = parser.parse_args()
    n, low, high = args.n_cells, args.latent_min, args.latent_max
    test_set = EncodedTestSet(args, needs_plane=True)

    labels = test_set.axis_labels
    if args.quantile:
        coordinates, extent = torch.special.ndtri((torch.arange(n) + 0.5) / n), (0, 1, 0, 1)
        labels = {axis: f"quantile of {label}" for axis, label in labels.items()}
        title = "Quantiles of the prior"
    else:
        coordinates, half_cell = torch.linspace(low, high, n), (high - low) / (n - 1) / 2
        extent, title = (low - half_cell, high + half_cell) * 2, "The latent plane"
    images = test_set.decode_normal(plane_grid(coordinates))
    axes = draw_grid(images, n, f"{title}, decoded\n{test_set.name}", extent)
    axes.set(**labels)
    save_figure(axes.figure, args.save_dir, "decoder_output" + "_quantile" * args.quantile)


if __name__ == "__main__":
    cli.run(main)
