"""Turns a photograph of a digit into an MNIST image: finds paper, ink and the digit's pieces."""

from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps  # Pillow comes with torchvision and matplotlib
from PIL.ImageFilter import BoxBlur, MaxFilter, MinFilter
from torch import Tensor

from utils.cli import UserError

SIDE = 320  # pixels; reducing larger pictures to this size averages out sensor noise


def grown(mask: np.ndarray, size: int) -> np.ndarray:
    """A mask (H, W), dilated by a square with sides of `size` pixels."""
    return np.asarray(Image.fromarray(mask.astype(np.uint8)).filter(MaxFilter(size))) > 0


def find_ink(grey: np.ndarray) -> np.ndarray:
    """The contrast of each pixel with the paper around it: (H, W), 0 for paper and its noise."""
    small = Image.fromarray(grey)
    small.thumbnail((64, 64), Image.Resampling.BOX)
    around = np.asarray(small.convert("L").filter(BoxBlur(8)))
    if ((small - around) ** 3).sum() > 0:  # light ink on dark paper: a minority of pixels is light
        grey, small = 255 - grey, Image.fromarray(255 - np.asarray(small))
    paper = small.filter(MaxFilter(21)).filter(MinFilter(21))
    paper = np.asarray(paper.resize(grey.shape[::-1], Image.Resampling.BILINEAR))
    ink = 1 - grey / paper.clip(max(1, np.median(paper) / 2))
    low, quarter = np.percentile(ink, (5, 25))  # paper values about one standard deviation apart
    return (ink - quarter - 4 * (quarter - low)).clip(0)


def threshold(ink: np.ndarray) -> float:
    """A threshold for all ink above 0: halfway between the means on its two sides."""
    ink = np.append(ink[ink > 0], 0)
    level = ink.mean()
    for _ in range(20):
        level = (ink[ink > level].mean() + ink[ink <= level].mean()) / 2
    return level


def pieces(cells: np.ndarray | Tensor) -> list[list[tuple[int, int]]]:
    """The connected components of grid cells (P, 2), each a list of (row, column) pairs."""
    left, found = set(map(tuple, cells.tolist())), []
    while left:
        piece = [left.pop()]
        for row, column in piece:  # the list grows in the loop
            new = left.intersection(product(range(row - 1, row + 2), range(column - 1, column + 2)))
            left -= new
            piece += new
        found.append(piece)
    return found


def without_lines(mask: np.ndarray) -> np.ndarray:
    """A mask (H, W) without ruled lines (long, thin, almost horizontal or vertical)."""
    size = max(mask.shape) // 160 * 2 + 3
    thin = mask & ~grown(~grown(~mask, size), size)  # parts too narrow for a square of this size
    lines = np.zeros_like(mask)
    for _ in range(2):  # horizontal lines, then vertical ones
        (rows, columns), width = np.nonzero(thin), thin.shape[1]
        for slope in np.linspace(-0.1, 0.1, 81):
            line = rows + np.round(slope * (columns - width)).astype(int) + width
            full = np.bincount(line, minlength=3) > width / 2
            full[1:-1] |= full[2:] | full[:-2]  # the edges of a line
            lines[rows[full[line]], columns[full[line]]] = True
        thin, lines = thin.T, lines.T
    return mask & ~lines


def choose(mask: np.ndarray) -> tuple[np.ndarray, bool]:
    """The digit's pieces in a mask (H, W), and whether they are clear of the border.

    The largest clear piece (the largest if none is clear) and similar ones nearby.
    """
    chosen, found = np.zeros_like(mask), pieces(np.argwhere(mask))
    if not found:
        return chosen, False
    low, high = (np.array([f(piece, axis=0) for piece in found]) for f in (np.min, np.max))
    area = np.array([len(piece) for piece in found])
    extent = (high - low).max(axis=1) + 1
    clear = (low > 0).all(axis=1) & (high < np.array(mask.shape) - 1).all(axis=1)
    large = extent >= max(mask.shape) / 15
    main = np.argmax(area * large * np.where(clear, mask.size, 1))
    if not large[main]:
        return chosen, False
    reach = extent[main] / 4
    near = ((low <= high[main] + reach) & (high >= low[main] - reach)).all(axis=1)
    alike = (area >= area[main] / 20) & (area / extent >= area[main] / extent[main] / 4)
    for i in np.flatnonzero(near & alike & (clear >= clear[main])):
        chosen[tuple(np.transpose(found[i]))] = True
    return chosen, bool(clear[main])


def find_digit(ink: np.ndarray) -> tuple[np.ndarray, bool]:
    """A mask (H, W) of the digit's pixels, and whether they are clear of the picture's border."""
    mask = ink > threshold(ink)
    digit, clear = choose(without_lines(mask))
    if not digit.any():  # without_lines has removed a long thin 1
        digit, clear = choose(mask)
    sides = (digit[0], digit[-1], digit[:, 0], digit[:, -1])
    if not clear and max(side.mean() for side in sides) > 0.8:  # a table or a frame
        rest = ink * ~grown(digit, max(ink.shape) // 25 * 2 + 1)
        if rest.any() and (below := find_digit(rest))[1]:
            return below
    return digit, clear


def read_grey(path: str | Path) -> np.ndarray:
    """A picture's brightness (H, W) in [0, 255], shrunk to H, W <= SIDE. Raises UserError."""
    try:
        picture = Image.open(path)
        picture.draft(None, (SIDE, SIDE))  # decodes a JPEG at a fraction of its size
        picture = ImageOps.exif_transpose(picture)
        if picture.mode[0] in "IF":  # 16 or 32 bits per pixel, in any range
            values = np.nan_to_num(np.asarray(picture, dtype=np.float32))
            values -= values.min()
            picture = Image.fromarray(values * (255 / max(values.max(), 1e-9)))
        else:
            if picture.has_transparency_data:  # black strokes and white ones show on grey
                picture = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "grey"), picture)
            picture = picture.convert("L")
        picture.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
        return np.asarray(picture, dtype=np.float32)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is not a readable picture ({error}); use PNG or JPEG.") from error


def read_image(path: str | Path) -> Tensor:
    """Turns a picture of a digit, of any size and polarity, into an MNIST image (1, 28, 28) uint8.

    Its strokes are light on dark and fit into 20x20 pixels. Their centre of mass is in the middle.
    Raises UserError.
    """
    ink = find_ink(read_grey(path))
    if ink.max() < 0.05 or not (digit := find_digit(ink)[0]).any():
        raise UserError(f"{path} shows only background or specks; give a picture of a digit.")
    soft = grown(digit, max(ink.shape) // 100 * 2 + 3)  # includes the strokes' edges
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
