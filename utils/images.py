"""Writes grids of digits as PNG files; reads a user's picture as a 28 x 28 image."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps  # comes with torchvision and matplotlib
from PIL.ImageFilter import MaxFilter
from torch import Tensor

from utils.cli import UserError
from utils.files import write_file
from utils.strokes import filtered, find_digit, find_ink, threshold

SIDE = 320  # pixels: a larger picture is reduced to it, which also averages a sensor's noise


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


def read_grey(path: str | Path) -> np.ndarray:
    """A picture's brightness (H, W), in [0, 255], reduced to SIDE. Raises UserError."""
    try:
        picture = Image.open(path)
        picture.draft(None, (SIDE, SIDE))  # decodes a JPEG at a fraction of its size
        picture = ImageOps.exif_transpose(picture)
        if picture.mode[0] in "IF":  # 16 or 32 bits, of any range
            values = np.nan_to_num(np.asarray(picture, dtype=np.float32))
            values -= values.min()
            picture = Image.fromarray(values * (255 / max(values.max(), 1e-9)))
        else:
            if picture.has_transparency_data:  # strokes on nothing may be black or white
                picture = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "grey"), picture)
            picture = picture.convert("L")
        picture.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
        return np.asarray(picture, dtype=np.float32)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = f"{path} is not a readable picture ({error}); give a PNG or JPEG."
        raise UserError(reason) from error


def read_image(path: str | Path) -> Tensor:
    """A picture of one digit, of any size and polarity, as MNIST is made: (1, 28, 28) uint8.

    Light on dark, the strokes' bounding box scaled into 20x20, the centre of mass at the centre.
    Raises UserError.
    """
    ink = find_ink(read_grey(path))
    if ink.max() < 0.05:
        raise UserError(f"{path} shows nothing but its background; give a picture of a digit.")
    digit, _ = find_digit(ink)
    if not digit.any():
        raise UserError(f"{path} shows nothing but specks; give a picture of a digit.")
    soft = filtered(digit, MaxFilter(max(ink.shape) // 100 * 2 + 3))  # with the strokes' edges
    soft &= digit | (ink <= threshold(ink))
    ink = (ink / np.percentile(ink[digit], 90)).clip(0, 1) * soft
    extent = max(np.ptp(np.nonzero(ink > 0.2), axis=1)) + 1
    ink = np.pad(ink, extent)
    scale = extent / 20
    centre = (np.average(axis, weights=ink) + 0.5 for axis in np.indices(ink.shape))
    top, left = (middle - 14.5 * scale for middle in centre)
    box = (left, top, left + 28 * scale, top + 28 * scale)
    image = np.asarray(Image.fromarray(ink).resize((28, 28), Image.Resampling.HAMMING, box))
    return torch.from_numpy(np.round(image * (255 / image.max())).astype(np.uint8))[None]
