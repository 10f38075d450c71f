"""The effect of each latent dimension: a test image, with one dimension moved in each row.

python3 vis/traversal/main.py --model_params pretrained/vae_mnist.pth --image_index 9
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from utils import cli
from utils.cli import number
from vis.common import EncodedTestSet, draw_grid, make_parser, save_figure

MAX_ROWS = 10  # the dimensions with the largest KL


def main() -> None:
    parser = make_parser("Moves a test image along one latent dimension at a time.")
    add = parser.add_argument
    add("--image_index", type=number(0, 9999), default=9, help="the test image in the middle")
    add("--n_steps", type=number(2, 50), default=13, help="images per row")
    args = parser.parse_args()
    test_set = EncodedTestSet(args)
    dimensions = test_set.by_kl[:MAX_ROWS]
    u = test_set.u[args.image_index].repeat(len(dimensions), args.n_steps, 1)  # (rows, n_steps, L)
    for row, dimension in zip(u, dimensions, strict=True):
        row[:, dimension] += torch.linspace(-2, 2, args.n_steps)

    title = f"Test image {args.image_index}, moved along one dimension in each row\n{test_set.name}"
    axes = draw_grid(test_set.decode_normal(u), args.n_steps, title)
    names = [f"${test_set.symbol}_{{{d + 1}}}$  {test_set.kl[d]:.2f} nats" for d in dimensions]
    axes.set_yticks(torch.arange(len(names)) + 0.5, names)
    axes.set_xticks([0.5, args.n_steps / 2, args.n_steps - 0.5], ["-2", "0", "2"])
    axes.tick_params(length=0)
    axes.set_xlabel("distance from the image, in standard deviations of the prior")
    save_figure(axes.figure, args.save_dir, "traversal")


if __name__ == "__main__":
    cli.run(main)
