"""MNIST and its two drop-in siblings, once into uint8 tensors: one fixed split, batches, binarisation.

The four archives are read as they are: nothing is extracted, so a read-only folder serves as well.
"""

import gzip
import math
import zlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Generator, Tensor

from errors import UserError

DATA_DIR = Path(__file__).resolve().parent / "datasets"
DATASETS = ("MNIST", "FashionMNIST", "KMNIST")  # torchvision's class names: same files, same shapes
BINARIZE = ("none", "dynamic", "threshold")
SPLITS = {"train": ("train", slice(0, 50_000)), "val": ("train", slice(50_000, 60_000)), "test": ("t10k", slice(0, 10_000))}
FIXED_SEED = 0  # of the one binarisation of the validation and test images


def load_mnist(data_dir: str | Path, split: str, dataset: str = "MNIST") -> tuple[Tensor, Tensor]:
    """Reads one split: images (N, 1, 28, 28) uint8 in 0..255 and labels (N,) int64 in 0..9.

    `split` is "train" (the first 50,000 training images), "val" (the last 10,000 of them) or "test" (10,000); the
    split depends on nothing else. Archives that are not in `data_dir`/`dataset`/raw are downloaded by torchvision.

    Raises UserError for an archive that is missing and cannot be downloaded, or that is broken.
    """
    prefix, part = SPLITS[split]
    raw = Path(data_dir) / dataset / "raw"
    images_path, labels_path = raw / f"{prefix}-images-idx3-ubyte.gz", raw / f"{prefix}-labels-idx1-ubyte.gz"
    if not (images_path.is_file() and labels_path.is_file()):
        _download(Path(data_dir), dataset)
    n_file = 60_000 if prefix == "train" else 10_000
    images = _read_idx(images_path, (n_file, 28, 28))[part]
    labels = _read_idx(labels_path, (n_file,))[part]
    return images.unsqueeze(1), labels.long()


def binarize(images: Tensor, mode: str, generator: Generator) -> Tensor:
    """Grey pixels (..., 28, 28) uint8 to uint8 of the same shape, holding only 0 and 255 unless `mode` is "none".

    "dynamic" draws x' ~ Bernoulli(x / 255) anew at each call: x > r with r uniform on 0..254, exact in integers and so
    the same bits on every machine for the same CPU `generator`. "threshold" is x > 0.5 and draws nothing.
    """
    if mode == "none":
        return images
    threshold = 127
    if mode == "dynamic":
        threshold = torch.randint(0, 255, images.shape, dtype=torch.uint8, generator=generator)
    return (images > threshold) * torch.tensor(255, dtype=torch.uint8)


def fixed_binarization(images: Tensor, mode: str) -> Tensor:
    """`binarize` once and for all, from a fixed seed: for the validation and test images. Same shapes and values."""
    return binarize(images, mode, torch.Generator().manual_seed(FIXED_SEED))


def to_float(images: Tensor, device: torch.device) -> Tensor:
    """(..., 28, 28) uint8 in 0..255 -> float32 in [0, 1] on `device`."""
    return images.to(device).float().div_(255)


def batches(
    images: Tensor, indices: Iterable[Tensor], device: torch.device, mode: str, generator: Generator
) -> Iterator[Tensor]:
    """For each index (B,) of `indices` those images as x (B, 1, 28, 28) float in [0, 1], binarised anew each time."""
    for index in indices:
        yield to_float(binarize(images.index_select(0, index), mode, generator), device)


@lru_cache(maxsize=2)  # the training archive serves two splits
def _read_idx(path: Path, shape: tuple[int, ...]) -> Tensor:
    """An archive of LeCun's idx format as a uint8 tensor of the expected shape; gzip verifies length and CRC-32."""
    again = "delete it and run again to download it anew"
    header = b"\0\0\x08" + bytes([len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
    size = len(header) + math.prod(shape)
    try:
        with gzip.open(path) as file:
            content = file.read(size + 1)  # one more, to reach the end and its checksum, however much an archive holds
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is truncated or damaged ({error}); {again}.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check --data_dir.") from error
    if not content.startswith(header) or len(content) != size:
        raise UserError(f"{path} does not hold {' x '.join(map(str, shape))} bytes in the idx format; {again}.")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape).copy())


def _download(data_dir: Path, dataset: str) -> None:
    """Lets torchvision fetch the four archives and verify their MD5 sums, then moves each into place in one step."""
    from torchvision import datasets  # here alone, because its import costs seconds

    try:
        raw = data_dir / dataset / "raw"
        raw.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=raw) as folder:  # its own, so that a stop or a second download does no harm
            getattr(datasets, dataset)(folder, download=True)
            for archive in Path(folder, dataset, "raw").glob("*.gz"):
                archive.replace(raw / archive.name)
    except Exception as error:  # what torchvision and urllib raise here is not documented
        reason = " ".join(str(error).split())
        raise UserError(
            f"{dataset} is not in {data_dir} and torchvision could not download it ({reason}); connect to the network, "
            f"make the folder writable, or put the four .gz archives into {data_dir / dataset / 'raw'}."
        ) from error
