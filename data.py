"""MNIST, FashionMNIST and KMNIST as uint8 tensors: fixed splits, binarisation and batches.

The archives are read without extraction, so a read-only folder suffices.
"""

import gzip
import os
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from utils.cli import UserError

DATASETS = ("MNIST", "FashionMNIST", "KMNIST")  # torchvision's class names
BINARIZE = ("none", "dynamic")
SPLITS = {  # split -> archive's prefix, images in the archive, range of the split
    "train": ("train", 60_000, slice(0, 50_000)),
    "val": ("train", 60_000, slice(50_000, 60_000)),
    "test": ("t10k", 10_000, slice(0, 10_000)),
}


def load_mnist(data_dir: str | Path, split: str, dataset: str = "MNIST") -> tuple[Tensor, Tensor]:
    """One split: images (N, 1, 28, 28) uint8 in 0..255 and labels (N,) int64 in 0..9.

    `split` is "train" (the first 50,000 training images), "val" (the last 10,000) or
    "test" (all test images). torchvision downloads archives missing from `data_dir`/`dataset`/raw.
    Raises UserError if an archive is damaged, or is missing and cannot be downloaded.
    """
    prefix, n, part = SPLITS[split]
    raw = Path(data_dir) / dataset / "raw"
    paths = [raw / f"{prefix}-images-idx3-ubyte", raw / f"{prefix}-labels-idx1-ubyte"]
    if not all(map(os.path.isfile, paths)):  # usually only the .gz archives exist
        paths = [path.with_name(f"{path.name}.gz") for path in paths]
    if not all(map(os.path.isfile, paths)):
        _download(Path(data_dir), dataset)
    images, labels = _read_idx(paths[0], (n, 1, 28, 28)), _read_idx(paths[1], (n,))
    return images[part], labels[part].long()


@lru_cache(maxsize=2)  # the training archive serves two splits
def _read_idx(path: Path, shape: tuple[int, ...]) -> Tensor:
    """The data of a file in LeCun's idx format, gzipped or not, as a uint8 tensor."""
    try:
        # gzip verifies a checksum
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            content = bytearray(file.read())
        header = 16 if len(shape) > 1 else 8  # 4 bytes each: magic number, sizes (images: 3)
        return torch.frombuffer(content, dtype=torch.uint8, offset=header).view(shape)
    except (OSError, EOFError, zlib.error, ValueError, RuntimeError) as error:
        raise UserError(
            f"{path} is damaged ({error}); delete {path.parent} and rerun to download it again."
        ) from error


def _download(data_dir: Path, dataset: str) -> None:
    """Lets torchvision fetch and verify the archives. Raises UserError."""
    from torchvision import datasets  # imported here, not above: the import takes seconds

    try:
        getattr(datasets, dataset)(data_dir, download=True)
    except Exception as error:  # the exceptions of torchvision and urllib are undocumented
        reason = " ".join(str(error).split())
        raise UserError(
            f"{dataset} is not in {data_dir} and could not be downloaded ({reason}); go online, "
            f"or put its four .gz archives into {data_dir / dataset / 'raw'}."
        ) from error


def binarize(images: Tensor, mode: str, rng: Generator | None = None) -> Tensor:
    """Mode "none" changes nothing; "dynamic" draws each uint8 pixel x as 255 * Bernoulli(x / 255).

    The draw is exact: x becomes 255 if x > r, and 0 otherwise, with integer r uniform on 0..254.
    `rng` must be on the images' device. Without `rng`, images must be on the CPU and the seed is 0.
    """
    if mode == "none":
        return images
    rng = rng or Generator().manual_seed(0)
    return (images > torch.empty_like(images).random_(0, 255, generator=rng)).byte() * 255


def deform(images: Tensor, strength: float, rng: Generator) -> Tensor:
    """Deforms each image (B, 1, 28, 28) uint8 by its own random 2x2 matrix, I + strength * N(0, 1).

    Each matrix rotates, shears and stretches about the centre (bilinear sampling, zero padding).
    """
    noise = torch.randn(len(images), 2, 2, device=images.device, generator=rng)
    matrices = F.pad(torch.eye(2, device=images.device) + strength * noise, (0, 1))  # (B, 2, 3)
    grid = F.affine_grid(matrices, images.shape, align_corners=False)
    return F.grid_sample(images.float(), grid, align_corners=False).round().byte()


def batches(
    images: Tensor, batch_size: int, mode: str, rng: Generator, strength: float = 0.0
) -> Iterator[Tensor]:
    """All images (N, 1, 28, 28) uint8, shuffled, as batches x (B, 1, 28, 28) in [0, 1].

    Each batch is deformed if `strength` > 0, then binarised by `mode`. The last one may be smaller.
    """
    order = torch.randperm(len(images), device=images.device, generator=rng)
    for index in order.split(batch_size):
        chosen = images[index]
        if strength > 0:
            chosen = deform(chosen, strength, rng)
        yield binarize(chosen, mode, rng) / 255
