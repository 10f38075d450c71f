"""Originals, each directly above its reconstruction from the posterior mean: of test images, or of pictures of your own.

python3 vis/reconstruct/main.py --model_params pretrained/vae_mnist.pth --n_images 30
python3 vis/reconstruct/main.py --model_params pretrained/vae_mnist.pth --image my_seven.png
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import numpy as np
import torch
from PIL import Image

import cli
from data import to_float
from errors import UserError
from vis.common import load_subject, make_parser, plt, save_figure, show_images

N_COLUMNS = 10


def read_image(path: Path) -> torch.Tensor:
    """A picture of one digit, of any size and polarity, as MNIST is made: (1, 28, 28) uint8. Raises UserError.

    Light on dark, the strokes' bounding box scaled into 20x20, the centre of mass at the centre of 28x28.
    """
    try:
        grey = np.asarray(Image.open(path).convert("L"), dtype=np.float32)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as a picture ({error}); give a PNG or JPEG.") from error
    background = np.median(np.concatenate((grey[0], grey[-1], grey[:, 0], grey[:, -1])))
    if background > 127:  # dark on light
        grey, background = 255 - grey, 255 - background
    grey = (grey - background).clip(0)
    rows, columns = np.nonzero(grey > 0.1 * grey.max())
    if not len(rows):
        raise UserError(f"{path} shows nothing but its background; give a picture of a digit.")
    digit = Image.fromarray(grey[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1])
    scale = 20 / max(digit.size)
    smooth = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
    digit = np.asarray(digit.resize([max(1, round(side * scale)) for side in digit.size], smooth))
    corner = []  # where the digit's centre of mass comes to lie at pixel (14, 14), as in MNIST
    for axis, side in zip(np.indices(digit.shape), digit.shape, strict=True):
        corner.append(int(np.clip(round(14 - np.average(axis, weights=digit)), 0, 28 - side)))
    image = np.zeros((1, 28, 28), dtype=np.uint8)
    (top, left), (height, width) = corner, digit.shape
    image[0, top : top + height, left : left + width] = np.round(digit * (255 / digit.max()))
    return torch.from_numpy(image)


def main() -> None:
    parser = make_parser("Draws images above their reconstructions.")
    parser.add_argument("--n_images", type=cli.integer(1, 1000), default=30, help="test images, drawn with --seed")
    parser.add_argument("--image", type=Path, nargs="+", help="reconstruct these pictures of one digit each instead")
    args = parser.parse_args()
    if args.image:
        own = torch.stack([read_image(path) for path in args.image])  # before the slower work
    subject = load_subject(args)
    if args.image:
        images = to_float(own, subject.device)
        with torch.inference_mode():
            mu, _ = subject.model.encode(images)
        title = f"{len(images)} picture{'s' if len(images) > 1 else ''} of your own, above the reconstructions"
    else:
        chosen = torch.randperm(len(subject.images), generator=cli.rng(args.seed))[: args.n_images]
        images, mu = to_float(subject.images[chosen], torch.device("cpu")), subject.mu[chosen]
        title = f"{len(images)} test images, above their reconstructions"

    n_columns = min(N_COLUMNS, len(images))
    n_missing = -len(images) % n_columns
    pairs = torch.stack((images.cpu(), subject.decode(mu)), dim=1)  # (N, 2, 1, 28, 28)
    pairs = torch.cat((pairs, torch.zeros(n_missing, 2, 1, 28, 28)))
    rows = pairs.view(-1, n_columns, 2, 1, 28, 28).transpose(1, 2).flatten(0, 2)  # a row of originals, a row below it
    n_rows = len(rows) // n_columns
    figure, axes = plt.subplots(figsize=(0.8 * max(n_columns, 6), 0.8 * n_rows + 0.6))
    show_images(axes, rows, n_columns)
    for boundary in range(56, 28 * n_rows, 56):
        axes.axhline(boundary - 0.5, color="white", linewidth=2)
    axes.set_title(f"{title}\n{subject.name}")
    save_figure(figure, args.save_dir, "reconstruct_own" if args.image else "reconstruct")


if __name__ == "__main__":
    cli.run(main)
