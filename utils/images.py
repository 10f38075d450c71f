"""Writes grids of digits as PNG files."""

import io
from pathlib import Path

import torch
from PIL import Image  # comes with torchvision and matplotlib
from torch import Tensor

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
