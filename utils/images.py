"""Pictures in and out: a grid of digits to a PNG file, a picture of one's own to 28 x 28."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps  # comes with torchvision and matplotlib
from torch import Tensor

from utils.cli import UserError
from utils.files import write_file


def tile(images: Tensor, n_columns: int) -> Tensor:
    """Images (N, 1, H, W), row by row from the top left -> (N / n_columns * H, n_columns * W)."""
    n, _, height, width = images.shape
    rows = images.reshape(n // n_columns, n_columns, height, width)
    return rows.transpose(1, 2).reshape(-1, n_columns * width)


def save_grid(images: Tensor, n_columns: int, path: str | Path) -> None:
    """Writes images (N, 1, H, W), uint8 or real in [0, 1], as one grey PNG. Raises UserError."""
    images = images.detach().cpu()
    if images.dtype != torch.uint8:
        images = images.float().clamp(0, 1).mul(255).round().byte()
    content = io.BytesIO()
    Image.fromarray(tile(images, n_columns).numpy()).save(content, "PNG")
    write_file(Path(path), content.getvalue())


def read_image(path: str | Path) -> Tensor:
    """A picture of one digit, of any size and polarity, as MNIST is made: (1, 28, 28) uint8.

    Light on dark, the strokes' bounding box scaled into 20x20, the centre of mass at the centre.
    Raises UserError.
    """
    try:
        picture = ImageOps.exif_transpose(Image.open(path)).convert("RGBA")
        paper = Image.new("RGBA", picture.size, "white")  # behind what is transparent
        grey = Image.alpha_composite(paper, picture).convert("L")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{path} is not a readable picture ({error}); give a PNG or JPEG."
        ) from error
    grey = np.asarray(grey, dtype=np.float32)
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
    corner = []  # puts the centre of mass at pixel (14, 14)
    for axis, side in zip(np.indices(digit.shape), digit.shape, strict=True):
        corner.append(int(np.clip(round(14 - np.average(axis, weights=digit)), 0, 28 - side)))
    image = np.zeros((1, 28, 28), dtype=np.uint8)
    (top, left), (height, width) = corner, digit.shape
    image[0, top : top + height, left : left + width] = np.round(digit * (255 / digit.max()))
    return torch.from_numpy(image)
