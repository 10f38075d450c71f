"""Values that `save_grid` meets besides those in [0, 1]."""

import numpy as np
import torch
from PIL import Image

from utils.images import save_grid


def test_save_grid_clamps_real_values_and_takes_uint8_as_it_is(tmp_path):
    real = torch.tensor([-0.2, 0.0, 0.5, 1.003], requires_grad=True)
    for values, pixels in (
        (real, [[0, 0], [128, 255]]),
        (real.bfloat16(), [[0, 0], [128, 255]]),
        (torch.tensor([7, 0, 128, 255]).byte(), [[7, 0], [128, 255]]),
    ):
        save_grid(values.view(4, 1, 1, 1), 2, tmp_path / "grid.png")
        assert np.asarray(Image.open(tmp_path / "grid.png")).tolist() == pixels
