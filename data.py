"""MNIST, FashionMNIST or KMNIST as uint8 tensors: one fixed split, batches, random changes.

The archives are read as they are: nothing is extracted, so a read-only folder serves as well.
"""

import gzip
import math
import os
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

from utils.cli import UserError

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

DATASETS = ("MNIST", "FashionMNIST", "KMNIST")  # torchvision's class names: same files and shapes
BINARIZE = ("none", "dynamic", "threshold")
SPLITS = {  # each split's archive, and its part of it
    "train": ("train", slice(0, 50_000)),
    "val": ("train", slice(50_000, 60_000)),
    "test": ("t10k", slice(0, 10_000)),
}
FIXED_SEED = 0  # of the one binarisation of images that are evaluated


def load_mnist(data_dir: str | Path, split: str, dataset: str = "MNIST") -> tuple[Tensor, Tensor]:
    """Reads one split: images (N, 1, 28, 28) uint8 in 0..255 and labels (N,) int64 in 0..9.

    `split` is "train" (the first 50,000 training images), "val" (the last 10,000 of them) or
    "test" (10,000); it depends on nothing else. Archives that are not in `data_dir`/`dataset`/raw
    are downloaded by torchvision.

    Raises UserError for an archive that is broken, or missing and not to be had, and for a
    `dataset` that is not one of DATASETS.
    """
    if dataset not in DATASETS:
        raise UserError(f"{dataset!r} is not a dataset; use one of {', '.join(DATASETS)}.")
    prefix, part = SPLITS[split]
    raw = Path(data_dir) / dataset / "raw"
    images_path = raw / f"{prefix}-images-idx3-ubyte.gz"
    labels_path = raw / f"{prefix}-labels-idx1-ubyte.gz"
    if not (os.path.isfile(images_path) and os.path.isfile(labels_path)):
        _download(Path(data_dir), dataset)
    n_file = 60_000 if prefix == "train" else 10_000
    images = _read_idx(images_path, (n_file, 28, 28))[part]
    labels = _read_idx(labels_path, (n_file,))[part]
    return images.unsqueeze(1), labels.long()


def binarize(images: Tensor, mode: str, generator: Generator) -> Tensor:
    """Grey pixels (..., 28, 28) uint8 to 0 and 255, uint8 too; "none" leaves them as they are.

    "dynamic" draws x' ~ Bernoulli(x / 255) anew at each call, as x > r with r uniform on 0..254:
    exact in integers, so the same bits on every machine for the same CPU `generator`.
    "threshold" is x > 0.5 and draws nothing. `generator` lives where the images do.
    Raises UserError for another mode.
    """
    if mode not in BINARIZE:
        raise UserError(f"{mode!r} is no binarisation; use one of {', '.join(BINARIZE)}.")
    if mode == "none":
        return images
    threshold = 127
    if mode == "dynamic":
        options = {"dtype": torch.uint8, "device": images.device, "generator": generator}
        threshold = torch.randint(0, 255, images.shape, **options)
    return (images > threshold).to(torch.uint8) * 255


def fixed_binarization(images: Tensor, mode: str) -> Tensor:
    """`binarize`, once and from a fixed seed, of images that are evaluated (on the CPU)."""
    return binarize(images, mode, torch.Generator().manual_seed(FIXED_SEED))


def to_float(images: Tensor) -> Tensor:
    """(..., 28, 28) uint8 in 0..255 -> float32 in [0, 1]."""
    return images.float().div_(255)


def deform(images: Tensor, strength: float, generator: Generator) -> Tensor:
    """Each image (B, 1, 28, 28) uint8 under its own random linear map I + strength * N(0, 1).

    The map turns, shears and stretches the image about its centre; pixels are interpolated
    linearly, and what comes from outside is 0. `generator` lives where the images do.
    """
    where = images.device
    noise = torch.randn(len(images), 2, 2, device=where, generator=generator)
    matrices = torch.eye(2, device=where) + strength * noise
    grid = F.affine_grid(F.pad(matrices, (0, 1)), images.shape, align_corners=False)
    moved = F.grid_sample(images.float(), grid, align_corners=False)
    return moved.round().to(torch.uint8)


def batches(
    images: Tensor,
    order: Tensor,
    batch_size: int,
    mode: str,
    generator: Generator,
    strength: float = 0.0,
) -> Iterator[Tensor]:
    """The images (N, 1, 28, 28) uint8 in this `order` (M,) as batches x (B, 1, 28, 28) in [0, 1].

    Deformed with this `strength`, if it is not 0, and binarised anew each time; everything happens
    where the images are. The last batch may be small.
    """
    for index in order.split(batch_size):
        chosen = images.index_select(0, index)
        if strength > 0:
            chosen = deform(chosen, strength, generator)
        yield to_float(binarize(chosen, mode, generator))


@lru_cache(maxsize=2)  # the training archive serves two splits
def _read_idx(path: Path, shape: tuple[int, ...]) -> Tensor:
    """An archive in LeCun's idx format as a uint8 tensor of the expected shape.

    gzip verifies length and checksum; one byte more is asked for, so that it reaches them.
    """
    again = "delete it and run again to download it anew"
    header = b"\0\0\x08" + bytes([len(shape)]) + np.array(shape, ">i4").tobytes()
    size = len(header) + math.prod(shape)
    try:
        with gzip.open(path) as file:
            content = file.read(size + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is truncated or damaged ({error}); {again}.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check --data_dir.") from error
    if not content.startswith(header) or len(content) != size:
        raise UserError(f"{path} does not hold {shape} bytes in the idx format; {again}.")
    pixels = np.frombuffer(content, np.uint8, offset=len(header))
    return torch.from_numpy(pixels.reshape(shape).copy())


def _download(data_dir: Path, dataset: str) -> None:
    """Lets torchvision fetch and verify the archives, then moves each into place in one step."""
    from torchvision import datasets  # here alone, because its import costs seconds

    raw = data_dir / dataset / "raw"
    try:
        raw.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=raw) as folder:  # a stop or a second download does no harm
            getattr(datasets, dataset)(folder, download=True)
            for archive in Path(folder, dataset, "raw").glob("*.gz"):
                archive.replace(raw / archive.name)
    except Exception as error:  # what torchvision and urllib raise here is not documented
        reason = " ".join(str(error).split())
        raise UserError(
            f"{dataset} is not in {data_dir} and torchvision could not download it ({reason}); "
            f"go online, make the folder writable, or put the four .gz archives into {raw}."
        ) from error
