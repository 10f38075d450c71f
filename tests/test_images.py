"""Pictures of one's own become images like those of MNIST."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from data import load_mnist
from utils.cli import DATA_DIR, UserError
from utils.photos import read_image

SIDE = 280  # pixels of a drawing
X, Y = np.meshgrid(np.arange(SIDE) / SIDE, np.arange(SIDE) / SIDE)
STROKES = {  # corners in a unit square; the hat of the 5 is a piece of its own
    "2": [[(0, 0.2), (0.25, 0), (0.6, 0.1), (0.6, 0.35), (0, 1), (0.7, 1)]],
    "5": [[(0.2, 0), (0.7, 0)], [(0.1, 0.15), (0.1, 0.45), (0.5, 0.45), (0.65, 0.7), (0, 0.95)]],
}


def drawing(digit: str) -> np.ndarray:
    """The ink of a digit drawn by lines: (280, 280), from 0 to 1."""
    picture = Image.new("L", (4 * SIDE, 4 * SIDE))
    for line in STROKES[digit]:
        corners = [(420 + 640 * x, 280 + 640 * y) for x, y in line]
        ImageDraw.Draw(picture).line(corners, fill=255, width=60, joint="curve")
    return np.asarray(picture.reduce(4)) / 255


def page(ink: np.ndarray, dark: float = 30, light: float = 230) -> np.ndarray:
    """Ink on paper, in [0, 255]."""
    return light + (dark - light) * ink


def tight(ink: np.ndarray) -> np.ndarray:
    rows, columns = np.nonzero(ink > 0.5)
    return ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def grain(std: float) -> np.ndarray:
    return np.random.default_rng(0).normal(0, std, (SIDE, SIDE))


def within(where: np.ndarray, value: float, picture: np.ndarray) -> np.ndarray:
    """A picture that is nowhere lighter than `value` in a region."""
    return np.where(where, np.minimum(picture, value), picture)


def lines(tilt: float = 0) -> np.ndarray:
    """The region of ruled lines, two pixels thick."""
    return (np.arange(SIDE)[:, None] + np.round(tilt * SIDE * (X - 0.5)) - 15) % 40 < 2


def save(path: Path, picture: np.ndarray) -> Path:
    Image.fromarray(np.round(picture).clip(0, 255).astype(np.uint8)).save(path)
    return path


def correlation(one: torch.Tensor | np.ndarray, other: torch.Tensor | np.ndarray) -> float:
    return np.corrcoef(np.ravel(one), np.ravel(other))[0, 1]


FRAME = (np.minimum(X, Y) == 0) | (np.maximum(X, Y) == X.max())
SPECKS = (abs(X - 0.9) < 0.01) & (abs(Y - 0.1) < 0.01) | (abs(X - 0.1) < 0.02) & (
    abs(Y - 0.9) < 0.02
)
SHADOW = 1 - 0.45 / (1 + np.exp(-(X + 0.3 * Y - 0.6) / 0.03))  # of a hand: soft, half of the page
CASES = {  # ink -> brightness
    "a dark frame of one pixel": lambda ink: within(FRAME, 0, page(ink)),
    "a dark frame around pencil": lambda ink: within(FRAME, 0, page(ink, 160, 220)),
    "dark specks": lambda ink: within(SPECKS, 0, page(ink)),
    "the edge of a table": lambda ink: within(X < 0.14, 60, page(ink)),
    "the edge of a table beside pencil": lambda ink: within(X < 0.14, 60, page(ink, 160, 220)),
    "uneven light": lambda ink: page(ink) / 230 * (235 - 30 * X),
    "light that falls to a half": lambda ink: page(ink) / 230 * (235 - 120 * X),
    "a shadow": lambda ink: page(ink) * SHADOW,
    "grain": lambda ink: page(ink) + grain(8),
    "ruled lines": lambda ink: within(lines(), 120, page(ink)),
    "ruled lines as dark as ink": lambda ink: within(lines(), 30, page(ink)),
    "ruled lines on a tilted page": lambda ink: within(lines(0.05), 120, page(ink)),
    "squared paper": lambda ink: within(lines() | lines().T, 150, page(ink)),
    "a page darker than grey": lambda ink: page(ink, 20, 90),
    "pencil": lambda ink: page(ink, 160, 220),
    "light on dark": lambda ink: 255 - page(ink),
    "chalk": lambda ink: page(ink, 210, 60) + grain(8),
    "a tight crop": lambda ink: page(tight(ink)),
    "a tight crop, light on dark": lambda ink: 255 * tight(ink),
    "a photograph": lambda ink: within(lines(0.03), 150, page(ink, 50)) * SHADOW + grain(6),
    "another": lambda ink: within(X > 0.86, 70, page(ink, 60) * (1 - 0.3 * Y)) + grain(6),
}


def on_nothing(grey: np.ndarray, colour: int) -> Image.Image:
    """Black or white strokes with an opacity, as drawing programs save them."""
    ink = (230 - grey) / 200
    picture = np.stack((*[np.full_like(ink, colour)] * 3, 255 * ink), axis=-1)
    return Image.fromarray(picture.astype(np.uint8))


def rgb(grey: np.ndarray) -> Image.Image:
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


TURNED = Image.Exif()
TURNED[0x0112] = 6  # "turn it clockwise": what the camera saved is turned the other way
FILES = {  # brightness -> picture
    "16.png": lambda grey: Image.fromarray((5000 + 100 * grey).astype(np.uint16)),
    "float.tif": lambda grey: Image.fromarray((grey / 255).astype(np.float32)),
    "black.png": lambda grey: on_nothing(grey, 0),
    "white.png": lambda grey: on_nothing(grey, 255),
    "turned.jpg": lambda grey: rgb(np.rot90(grey)),
    "large.jpg": lambda grey: rgb(np.pad(grey, ((0, 0), (0, 93)), "edge")).resize((4000, 3003)),
    "palette.png": lambda grey: rgb(grey).quantize(16),
    "cmyk.jpg": lambda grey: rgb(grey).convert("CMYK"),
    "la.png": lambda grey: rgb(grey).convert("LA"),
}


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> dict[str, torch.Tensor]:
    """What a clean drawing of each digit becomes."""
    path = tmp_path_factory.mktemp("clean") / "clean.png"
    return {digit: read_image(save(path, page(drawing(digit)))) for digit in STROKES}


@pytest.mark.parametrize("case", CASES)
def test_a_digit_is_found_on_a_kitchen_table(clean, tmp_path, case):
    for digit, truth in clean.items():
        found = read_image(save(tmp_path / "photograph.png", CASES[case](drawing(digit))))
        assert correlation(found, truth) > 0.9, digit


@pytest.mark.parametrize("name", FILES)
def test_a_digit_is_read_from_every_kind_of_file(clean, tmp_path, name):
    options = {"exif": TURNED} if name == "turned.jpg" else {}
    FILES[name](page(drawing("5"))).save(tmp_path / name, **options)
    assert correlation(read_image(tmp_path / name), clean["5"]) > 0.95


@pytest.mark.parametrize("size", [28, 280])
def test_a_clean_picture_becomes_the_mnist_digit_that_it_shows(tmp_path, size):
    """Apart from where it stands: a centre of mass in MNIST is up to half a pixel off centre."""
    frequency = torch.fft.fftfreq(28) * -2j * torch.pi
    for i, digit in enumerate(load_mnist(DATA_DIR, "test")[0][:20, 0]):
        grey = Image.fromarray(digit.numpy()).resize((size, size), Image.Resampling.BICUBIC)
        off_centre = np.pad(np.asarray(grey), ((0, size), (size // 2, 0)))  # and not square
        ours = read_image(save(tmp_path / "i.png", 255.0 - off_centre if i % 2 else off_centre))[0]
        place = torch.stack(torch.meshgrid(*[torch.arange(28.0)] * 2, indexing="ij"))
        centre, theirs = (((p * place).sum(dim=(1, 2)) / p.sum()) for p in (ours, digit))
        assert (centre - 14).abs().max() < 0.2, i
        phase = [frequency * distance for distance in centre - theirs]
        shift = torch.exp(phase[0][:, None] + phase[1])  # of the digit, by a part of a pixel
        moved = torch.fft.ifft2(torch.fft.fft2(digit.float()) * shift).real
        assert correlation(ours, moved) > 0.94, i


def test_pictures_without_a_digit_are_refused(tmp_path):
    save(tmp_path / "white.png", np.full((30, 30), 255))
    save(tmp_path / "grain.png", 200 + grain(8))
    save(tmp_path / "specks.png", within(SPECKS, 0, np.full((SIDE, SIDE), 230)))
    (tmp_path / "text.png").write_text("not a picture")
    reasons = {"white": "only background", "grain": "only background|specks", "specks": "specks"}
    reasons |= {"text": "not a readable picture", "missing": "not a readable picture"}
    for name, reason in reasons.items():
        with pytest.raises(UserError, match=rf"{name}\.png .*({reason}).*\.$"):
            read_image(tmp_path / f"{name}.png")
