"""What each latent dimension does: a test image, with one dimension moved in each row.

python3 vis/traversal/main.py --model_params pretrained/vae_mnist.pth --image_index 9

With a flow it moves u ~ N(0, I), of which the flow makes z; straight lines in z leave the images.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from utils import cli

import torch

from vis.common import Subject, draw_grid, make_parser, save_figure


def main() -> None:
    parser = make_parser("Moves a test image along one latent dimension at a time.")
    add = parser.add_argument
    add("--image_index", type=cli.integer(0, 9999), default=9, help="the test image to start from")
    add("--n_steps", type=cli.integer(2, 50), default=13, help="images a row")
    add("--max_rows", type=cli.integer(1, 100), default=10, help="dimensions, by their KL")
    args = parser.parse_args()
    subject = Subject(args)
    dimensions = subject.by_kl[: args.max_rows]
    u = subject.u[args.image_index].repeat(len(dimensions), args.n_steps, 1)  # (rows, n_steps, L)
    for row, dimension in zip(u, dimensions, strict=True):
        row[:, dimension] += torch.linspace(-2, 2, args.n_steps)

    title = f"Test image {args.image_index}, moved along one dimension in each row\n{subject.name}"
    axes = draw_grid(subject.decode_normal(u), args.n_steps, title)
    names = [f"${subject.symbol}_{{{d + 1}}}$  {subject.kl[d]:.2f} nats" for d in dimensions]
    axes.set_yticks(torch.arange(len(names)) + 0.5, names)
    axes.set_xticks([0.5, args.n_steps / 2, args.n_steps - 0.5], ["-2", "0", "2"])
    axes.tick_params(length=0)
    axes.set_xlabel("distance from the image, in standard deviations of the prior")
    save_figure(axes.figure, args.save_dir, "traversal")


if __name__ == "__main__":
    cli.run(main)
