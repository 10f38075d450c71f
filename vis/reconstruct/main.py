"""Images, each above its reconstruction from the posterior mean: test images, or your own pictures.

python3 vis/reconstruct/main.py --model_params pretrained/vae_mnist.pth --n_images 30
python3 vis/reconstruct/main.py --model_params pretrained/vae_mnist.pth --image my_seven.png
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from data import binarize
from estimators import posteriors
from utils import cli
from utils.cli import number
from utils.device import rng
from utils.images import read_image
from vis.common import EncodedTestSet, draw_grid, make_parser, save_figure


def main() -> None:
    parser = make_parser("Draws images above their reconstructions.")
    add = parser.add_argument
    add("--n_images", type=number(1, 1000), default=30, help="test images, drawn at random")
    add("--image", type=Path, nargs="+", help="reconstruct these pictures of a digit instead")
    args = parser.parse_args()
    if args.image:
        images = torch.stack([read_image(path) for path in args.image])  # before the slower work
        name, title = "reconstruct_own", "Your own pictures"
    test_set = EncodedTestSet(args)
    if args.image:
        images = binarize(images, test_set.binarize)
    else:
        chosen = torch.randperm(len(test_set.images), generator=rng(args.seed))[: args.n_images]
        images, name, title = test_set.images[chosen], "reconstruct", "Test images"

    decoded = test_set.decode(posteriors(test_set.model, images).mu)
    n_columns = min(10, len(images))
    pairs = torch.cat((images / 255, decoded), dim=2)  # (N, 1, 56, 28)
    black = torch.zeros(-len(images) % n_columns, 1, 56, 28)  # fills the last row
    title += f", above their reconstructions\n{test_set.name}"
    axes = draw_grid(torch.cat((pairs, black)), n_columns, title)
    for n_above in range(n_columns, len(images), n_columns):
        axes.axhline(n_above / n_columns, color="white", linewidth=2)
    save_figure(axes.figure, args.save_dir, name)


if __name__ == "__main__":
    cli.run(main)
