"""Images to a PNG file: a grid of digits as one picture."""

from pathlib import Path

from PIL import Image  # comes with torchvision and matplotlib
from torch import Tensor

from errors import UserError


def tile(images: Tensor, n_columns: int) -> Tensor:
    """(N, 1, H, W), N a multiple of `n_columns`, row by row from the top left -> (N / n_columns * H, n_columns * W)."""
    n, _, height, width = images.shape
    n_rows = n // n_columns
    return images.view(n_rows, n_columns, height, width).transpose(1, 2).reshape(n_rows * height, n_columns * width)


def save_grid(images: Tensor, n_columns: int, path: str | Path) -> None:
    """Writes images (N, 1, 28, 28) in [0, 1] as one grey PNG, white strokes on black. Raises UserError."""
    path = Path(path)
    grey = tile(images.detach(), n_columns).mul(255).round().byte().cpu().numpy()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grey).save(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); choose another --save_dir.") from error
