"""What the decoder makes of a grid of z: the manifold of digits, as in the paper's figure 4.

python3 vis/decoder_output/main.py --model_params pretrained/vae_mnist.pth --latent_min -4 --latent_max 4
python3 vis/decoder_output/main.py --model_params pretrained/vae_mnist.pth --quantile
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch

import cli
from errors import UserError
from vis.common import load_subject, make_parser, plt, save_figure, show_images


def latent_grid(coordinates: torch.Tensor) -> torch.Tensor:
    """(n,) ascending -> (n, n, 2) as one looks at a plot: z_1 grows to the right, z_2 grows upwards."""
    z2, z1 = torch.meshgrid(coordinates.flip(0), coordinates, indexing="ij")
    return torch.stack((z1, z2), dim=-1)


def main() -> None:
    parser = make_parser("Decodes a grid of two latent dimensions.")
    parser.add_argument("--latent_min", type=cli.number(-100, 100), default=-4.0, help="left and lower end of the grid")
    parser.add_argument("--latent_max", type=cli.number(-100, 100), default=4.0, help="right and upper end of the grid")
    parser.add_argument("--n_cells", type=cli.integer(2, 100), default=32, help="digits along each axis")
    parser.add_argument("--quantile", action="store_true", help="even steps in the prior's probability")
    args = parser.parse_args()
    if args.latent_min >= args.latent_max:
        raise UserError(f"--latent_min {args.latent_min:g} must be below --latent_max {args.latent_max:g}.")
    subject = load_subject(args)
    latent_dim = subject.model.config.latent_dim
    if latent_dim < 2:
        raise UserError("a grid needs at least 2 latent dimensions, this model has 1; use vis/traversal instead.")

    n = args.n_cells
    if args.quantile:
        probabilities = (torch.arange(n) + 0.5) / n
        coordinates, low, high = torch.special.ndtri(probabilities), 0.0, 1.0
    else:
        coordinates = torch.linspace(args.latent_min, args.latent_max, n)
        half_cell = (args.latent_max - args.latent_min) / (n - 1) / 2
        low, high = args.latent_min - half_cell, args.latent_max + half_cell
    first, second = subject.dimensions_by_kl()[:2] if latent_dim > 2 else (0, 1)
    z = torch.zeros(n, n, latent_dim) if args.quantile else subject.mu.mean(dim=0).float().expand(n, n, -1).clone()
    z[:, :, [first, second]] = latent_grid(coordinates)
    if args.quantile:
        z = subject.from_normal(z)

    figure, axes = plt.subplots(figsize=(8, 8))
    show_images(axes, subject.decode(z), n, extent=(low, high, low, high))
    if args.quantile:
        ticks = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0])
        places = torch.special.ndtr(ticks)
        axes.set_xticks(places.tolist(), [f"{tick:g}" for tick in ticks])
        axes.set_yticks(places.tolist(), [f"{tick:g}" for tick in ticks])
    title = f"Decoded {'quantiles of the prior' if args.quantile else 'latent plane'}\n{subject.name}"
    if latent_dim > 2:
        title += f"; the two of largest KL, the others at {'0' if args.quantile else 'their mean'}"
    axis = "u" if args.quantile and subject.model.config.prior == "flow" else "z"  # a flow makes z of u ~ N(0, I)
    axes.set(xlabel=f"${axis}_{{{first + 1}}}$", ylabel=f"${axis}_{{{second + 1}}}$", title=title)
    save_figure(figure, args.save_dir, "decoder_output_quantile" if args.quantile else "decoder_output")


if __name__ == "__main__":
    cli.run(main)
