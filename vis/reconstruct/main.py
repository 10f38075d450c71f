"""Images, each above its reconstruction from the posterior mean: test images, or your own pictures.

python3 vis/reconstruct/main.py --model_params pretrained/vae_mnist.pth --n_images 30
python3 vis/reconstruct/main.py --model_params pretrained/vae_mnist.pth --image my_seven.png
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from utils import cli
from utils.device import rng
from utils.images import read_image

import torch

from data import fixed_binarization, to_float
from estimators import posteriors
from vis.common import Subject, draw_grid, make_parser, save_figure


def main() -> None:
    parser = make_parser("Draws images above their reconstructions.")
    add = parser.add_argument
    add("--n_images", type=cli.integer(1, 1000), default=30, help="test images, drawn at random")
    add("--image", type=Path, nargs="+", help="reconstruct these pictures of a digit instead")
    args = parser.parse_args()
    if args.image:
        images = torch.stack([read_image(path) for path in args.image])  # before the slower work
        name, title = "reconstruct_own", "Your own pictures"
    subject = Subject(args)
    if args.image:
        images = fixed_binarization(images, subject.binarize)
    else:
        chosen = torch.randperm(len(subject.images), generator=rng(args.seed))[: args.n_images]
        images, name, title = subject.images[chosen], "reconstruct", "Test images"

    mu, _ = posteriors(subject.model, images)
    n_columns = min(10, len(images))
    pairs = torch.cat((to_float(images), subject.decode(mu)), dim=2)  # (N, 1, 56, 28)
    black = torch.zeros(-len(images) % n_columns, 1, 56, 28)  # fills the last row
    title += f", above their reconstructions\n{subject.name}"
    axes = draw_grid(torch.cat((pairs, black)), n_columns, title)
    for n_above in range(n_columns, len(images), n_columns):
        axes.axhline(n_above / n_columns, color="white", linewidth=2)
    save_figure(axes.figure, args.save_dir, name)


if __name__ == "__main__":
    cli.run(main)
