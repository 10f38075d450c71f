"""The effect of the latent dimensions: each row moves a test image along one of them.

python3 vis/traversal/main.py --model_params pretrained/vae_mnist.pth --image_index 9
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from utils import cli
from utils.cli import number
from vis.common import EncodedTestSet, draw_grid, make_parser, plt, save_figure

MAX_ROWS = 10  # one row per dimension, in order of decreasing KL
N_STEPS = 11  # images per row; the middle one is not moved


def main() -> None:
    parser = make_parser("Moves a test image along one latent dimension at a time.")
    parser.add_argument("--image_index", type=number(0, 9999), default=9, help="test image to move")
    args = parser.parse_args()
    test_set = EncodedTestSet(args)
    dimensions = test_set.by_kl[:MAX_ROWS]
    u = test_set.u[args.image_index].repeat(len(dimensions), N_STEPS, 1)  # (rows, N_STEPS, L)
    for row, dimension in zip(u, dimensions, strict=True):
        row[:, dimension] += torch.linspace(-2, 2, N_STEPS)
    original = torch.zeros(N_STEPS, 1, 28, 28)  # the top row is black except in the middle
    original[N_STEPS // 2] = test_set.images[args.image_index] / 255

    title = f"A test image, moved along one dimension in each row\n{test_set.name}"
    axes = draw_grid(torch.cat((original, test_set.decode_normal(u))), N_STEPS, title)
    frame = {"fill": False, "edgecolor": "gold", "linewidth": 2}
    axes.add_patch(plt.Rectangle((N_STEPS // 2, 1), 1, len(dimensions), **frame))
    names = [f"${test_set.symbol}_{{{d + 1}}}$  {test_set.kl[d]:.2f} nats" for d in dimensions]
    names = [f"test image {args.image_index}", *names]
    axes.set_yticks(torch.arange(len(names)) + 0.5, names)
    axes.set_xticks([0.5, N_STEPS / 2, N_STEPS - 0.5], ["-2", "its mean", "+2"])
    axes.set_xlabel("distance from its mean, in standard deviations of the prior")
    save_figure(axes.figure, args.save_dir, "traversal")


if __name__ == "__main__":
    cli.run(main)
