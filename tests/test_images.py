"""Pictures out, with values besides those in [0, 1], and pictures of one's own in."""

import numpy as np
import pytest
import torch
from PIL import Image

from data import load_mnist
from utils.cli import DATA_DIR, UserError
from utils.images import read_image, save_grid


def test_save_grid_clamps_real_values_and_takes_uint8_as_it_is(tmp_path):
    real = torch.tensor([-0.2, 0.0, 0.5, 1.003], requires_grad=True)
    for values, pixels in (
        (real, [[0, 0], [128, 255]]),
        (real.bfloat16(), [[0, 0], [128, 255]]),
        (torch.tensor([7, 0, 128, 255]).byte(), [[7, 0], [128, 255]]),
    ):
        save_grid(values.view(4, 1, 1, 1), 2, tmp_path / "grid.png")
        assert np.asarray(Image.open(tmp_path / "grid.png")).tolist() == pixels


@pytest.mark.parametrize("dark_on_light", [False, True])
@pytest.mark.parametrize("size", [28, 280])
def test_a_picture_of_ones_own_becomes_the_mnist_digit_that_it_shows(tmp_path, dark_on_light, size):
    digits = load_mnist(DATA_DIR, "test")[0][:20]
    for i, digit in enumerate(digits):
        grey = Image.fromarray(digit[0].numpy()).resize((size, size), Image.Resampling.BICUBIC)
        off_centre = np.pad(np.asarray(grey), ((0, size), (size // 2, 0)))  # and not square
        Image.fromarray(255 - off_centre if dark_on_light else off_centre).save(tmp_path / "i.png")
        ours = read_image(tmp_path / "i.png")[0].float()
        weights = ours.numpy() / ours.sum().item()
        centre = [(weights * axis).sum() for axis in np.indices((28, 28))]
        assert np.abs(np.array(centre) - 14).max() <= 0.6, i
        both = torch.stack((ours.flatten(), digit.flatten().float()))
        assert torch.corrcoef(both)[0, 1] > 0.8, i


def test_transparent_and_turned_pictures_are_read_as_they_are_seen(tmp_path):
    """Black strokes on nothing, as drawing programs save them, and a photograph held upright."""
    ink = load_mnist(DATA_DIR, "test")[0][0, 0]
    Image.fromarray(ink.numpy()).save(tmp_path / "opaque.png")
    strokes = torch.zeros(28, 28, 4, dtype=torch.uint8)
    strokes[..., 3] = ink
    Image.fromarray(strokes.numpy()).save(tmp_path / "transparent.png")
    orientation = Image.Exif()
    orientation[0x0112] = 6  # "turn it clockwise": what the camera saved is turned the other way
    turned = Image.fromarray(ink.rot90(1).contiguous().numpy())
    turned.save(tmp_path / "turned.png", exif=orientation)
    truth = read_image(tmp_path / "opaque.png")
    for name in ("transparent.png", "turned.png"):
        assert torch.equal(read_image(tmp_path / name), truth)


def test_pictures_without_a_digit_are_refused(tmp_path):
    Image.new("L", (30, 30), 255).save(tmp_path / "white.png")
    (tmp_path / "text.png").write_text("not a picture")
    for name in ("white.png", "text.png", "missing.png"):
        with pytest.raises(UserError, match=name):
            read_image(tmp_path / name)
