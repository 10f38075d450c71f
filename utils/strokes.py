"""Which pixels of a photograph are a digit's strokes: paper, threshold, connected pieces."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from PIL.ImageFilter import MaxFilter, MinFilter


def filtered(mask: np.ndarray, *filters: MaxFilter | MinFilter) -> np.ndarray:
    """A mask (H, W) grown by a MaxFilter, shrunk by a MinFilter."""
    picture = Image.fromarray(mask.astype(np.uint8))
    for each in filters:
        picture = picture.filter(each)
    return np.asarray(picture) > 0


def find_ink(grey: np.ndarray) -> np.ndarray:
    """The contrast of each pixel with the paper around it: (H, W), 0 for paper and its noise."""
    small = Image.fromarray(grey)
    small.thumbnail((64, 64), Image.Resampling.BOX)
    around = sliding_window_view(np.pad(small, 8, mode="reflect"), (17, 17)).mean(axis=(2, 3))
    if ((small - around) ** 3).sum() > 0:  # light on dark: ink is what fewer pixels hold
        grey, small = 255 - grey, Image.fromarray(255 - np.asarray(small))
    paper = small.filter(MaxFilter(21)).filter(MinFilter(21))
    paper = np.asarray(paper.resize(grey.shape[::-1], Image.Resampling.BILINEAR))
    ink = 1 - grey / paper.clip(max(1, np.median(paper) / 2))
    low, quarter = np.percentile(ink, (5, 25))  # of paper: about one standard deviation apart
    return (ink - quarter - 4 * (quarter - low)).clip(0)


def threshold(ink: np.ndarray) -> float:
    """Otsu's threshold of all ink above 0: half-way between the means of its two sides."""
    ink = np.append(ink[ink > 0], 0)
    level = ink.mean()
    for _ in range(20):
        level = (ink[ink > level].mean() + ink[ink <= level].mean()) / 2
    return level


def pieces(mask: np.ndarray) -> list[np.ndarray]:
    """The connected pieces of a mask (H, W), each as its rows and columns (2, n)."""
    width = mask.shape[1] + 1  # an empty column parts the end of a row from the next one
    left = set(np.flatnonzero(np.pad(mask, ((0, 0), (0, 1)))).tolist())
    steps = [row * width + column for row in (-1, 0, 1) for column in (-1, 0, 1)]
    found = []
    while left:
        piece = [left.pop()]
        for pixel in piece:  # which grows meanwhile
            new = left.intersection([pixel + step for step in steps])
            left -= new
            piece += new
        found.append(np.stack(np.divmod(piece, width)))
    return found


def without_lines(mask: np.ndarray) -> np.ndarray:
    """A mask (H, W) without ruled lines: thin, almost level or upright, and long."""
    size = max(mask.shape) // 160 * 2 + 3
    thin = mask & ~filtered(mask, MinFilter(size), MaxFilter(size))
    lines = np.zeros_like(mask)
    for _ in range(2):  # level lines, then upright ones
        (rows, columns), width = np.nonzero(thin), thin.shape[1]
        for slope in np.linspace(-0.1, 0.1, 81):
            line = rows + np.round(slope * (columns - width)).astype(int) + width
            full = np.bincount(line, minlength=3) > width / 2
            full[1:-1] |= full[2:] | full[:-2]  # the edges of a line
            lines[rows[full[line]], columns[full[line]]] = True
        thin, lines = thin.T, lines.T
    return mask & ~lines


def choose(mask: np.ndarray) -> tuple[np.ndarray, bool]:
    """The digit's pieces of a mask (H, W), and whether they keep clear of the border.

    They are the largest piece that keeps clear of the border, if any, and similar pieces near it.
    """
    chosen, found = np.zeros_like(mask), pieces(mask)
    if not found:
        return chosen, False
    low, high = (np.array([f(piece, axis=1) for piece in found]) for f in (np.min, np.max))
    area = np.array([piece.shape[1] for piece in found])
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
        chosen[tuple(found[i])] = True
    return chosen, bool(clear[main])


def find_digit(ink: np.ndarray) -> tuple[np.ndarray, bool]:
    """The digit's pixels, a mask (H, W), and whether they keep clear of the picture's border."""
    mask = ink > threshold(ink)
    digit, clear = choose(without_lines(mask))
    if not digit.any():  # the picture holds nothing but a long thin 1
        digit, clear = choose(mask)
    sides = (digit[0], digit[-1], digit[:, 0], digit[:, -1])
    if not clear and max(side.mean() for side in sides) > 0.8:  # a table or a frame
        rest = ink * ~filtered(digit, MaxFilter(max(ink.shape) // 25 * 2 + 1))
        if rest.any() and (below := find_digit(rest))[1]:
            return below
    return digit, clear
