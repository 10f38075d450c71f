"""A plane of latent space, decoded: the manifold of digits, as in the paper's figure 4.

python3 vis/decoder_output/main.py --model_params pretrained/vae_mnist.pth --latent_min -4
python3 vis/decoder_output/main.py --model_params pretrained/vae_mnist.pth --quantile

The plane is one of u ~ N(0, I), which the prior maps to z; without a flow u is z.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from utils import cli
from utils.cli import UserError, number
from vis.common import EncodedTestSet, draw_grid, make_parser, plane_grid, save_figure


def main() -> None:
    parser = make_parser("Decodes a grid of two latent dimensions.")
    add, coordinate = parser.add_argument, number(-100.0, 100.0)
    add("--latent_min", type=coordinate, default=-4.0, help="left and lower end of the grid")
    add("--latent_max", type=coordinate, default=4.0, help="right and upper end of the grid")
    add("--n_cells", type=number(2, 100), default=32, help="digits along each axis")
    add("--quantile", action="store_true", help="even steps in the prior's probability")
    add("--image_index", type=number(0, 9999), default=9, help="gives further dimensions")
    args = parser.parse_args()
    n, low, high = args.n_cells, args.latent_min, args.latent_max
    if low >= high:
        raise UserError(f"--latent_min {low:g} must be below --latent_max {high:g}.")
    test_set = EncodedTestSet(args)
    first, second = test_set.plane()

    labels = [f"{test_set.symbol}_{{{d + 1}}}" for d in (first, second)]
    if args.quantile:
        coordinates, extent = torch.special.ndtri((torch.arange(n) + 0.5) / n), (0, 1, 0, 1)
        labels, title = [rf"\Phi({label})" for label in labels], "Decoded quantiles of the prior"
    else:
        coordinates, half_cell = torch.linspace(low, high, n), (high - low) / (n - 1) / 2
        extent, title = (low - half_cell, high + half_cell) * 2, "Decoded latent plane"
    u = test_set.u[args.image_index].repeat(n, n, 1)  # (n, n, L)
    u[:, :, [first, second]] = plane_grid(coordinates)
    title += f"\n{test_set.name}"
    if u.shape[-1] > 2:
        title += f"; the other dimensions as in test image {args.image_index}"
    axes = draw_grid(test_set.decode_normal(u), n, title, extent)
    axes.set(xlabel=f"${labels[0]}$", ylabel=f"${labels[1]}$")
    save_figure(axes.figure, args.save_dir, "decoder_output" + "_quantile" * args.quantile)


if __name__ == "__main__":
    cli.run(main)
