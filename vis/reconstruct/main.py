"""Reconstructs test images or your own pictures by decoding their posterior means.

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
from utils.photos import read_grey, read_image
from vis.common import EncodedTestSet, draw_grid, make_parser, plt, save_figure


def draw_own(paths: list[Path], images: torch.Tensor, test_set: EncodedTestSet) -> plt.Figure:
    """Draws images (N, 1, 28, 28) uint8 between the pictures in `paths` and the reconstructions."""
    decoded = test_set.decode(posteriors(test_set.model, images).mu) * 255
    size = (6, 2 * len(paths))
    figure, axes = plt.subplots(len(paths), 3, figsize=size, squeeze=False, layout="constrained")
    for row, path, seen, mean in zip(axes, paths, images, decoded, strict=True):
        pictures = (read_grey(path), seen[0].numpy(), mean[0].numpy())
        for panel, picture in zip(row, pictures, strict=True):
            panel.imshow(picture, "gray", vmin=0, vmax=255)
            panel.axis("off")
    figure.suptitle(f"Your picture, the model's input, its reconstruction\n{test_set.name}")
    return figure


def draw_pairs(images: torch.Tensor, test_set: EncodedTestSet) -> plt.Figure:
    """Draws each of the images (N, 1, 28, 28) uint8 above its reconstruction."""
    decoded = test_set.decode(posteriors(test_set.model, images).mu)
    n_columns = min(10, len(images))
    pairs = torch.cat((images / 255, decoded), dim=2)  # (N, 1, 56, 28)
    black = torch.zeros(-len(images) % n_columns, 1, 56, 28)  # fills the last row
    title = f"Test images, above their reconstructions\n{test_set.name}"
    axes = draw_grid(torch.cat((pairs, black)), n_columns, title)
    for n_above in range(n_columns, len(images), n_columns):
        axes.axhline(n_above / n_columns, color="white", linewidth=2)
    return axes.figure


def main() -> None:
    parser = make_parser("Draws images with their reconstructions.")
    parser.add_argument("--n_images", type=number(1, 1000), default=30, help="random test images")
    parser.add_argument("--image", type=Path, nargs="+", help="use your own pictures instead")
    args = parser.parse_args()
    own = [read_image(path) for path in args.image or ()]  # errors appear before the slow work
    test_set = EncodedTestSet(args)
    if own:
        images = binarize(torch.stack(own), test_set.binarize)
        save_figure(draw_own(args.image, images, test_set), args.save_dir, "reconstruct_own")
    else:
        chosen = torch.randperm(len(test_set.images), generator=rng(args.seed))[: args.n_images]
        save_figure(draw_pairs(test_set.images[chosen], test_set), args.save_dir, "reconstruct")


if __name__ == "__main__":
    cli.run(main)
