"""The digits against torchvision's own reading, the binarisation against counting; bad archives."""

import gzip
import hashlib
import math
import shutil
from itertools import product
from pathlib import Path

from utils.cli import DATA_DIR, UserError

import pytest
import torch
from torchvision import datasets

import data

RAW = DATA_DIR / "MNIST" / "raw"
ARCHIVES = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
SIZES = {"train": 50_000, "val": 10_000, "test": 10_000}


@pytest.fixture(scope="module")
def splits():
    return {split: data.load_mnist(DATA_DIR, split) for split in SIZES}


def test_the_digits_are_those_that_torchvision_reads(splits, tmp_path):
    """Shapes, order and types too; the first two splits are the training file, cut in two."""
    shutil.copytree(DATA_DIR / "MNIST", tmp_path / "MNIST")
    for split, (images, labels) in splits.items():
        # The download is none: it verifies the MD5 sums of what is there.
        theirs = datasets.MNIST(tmp_path, train=split != "test", download=True)
        part = slice(50_000, None) if split == "val" else slice(SIZES[split])
        assert images.shape == (SIZES[split], 1, 28, 28)
        assert labels.dtype == torch.int64
        assert torch.equal(images[:, 0], theirs.data[part])
        assert torch.equal(labels, theirs.targets[part])


def test_a_dynamic_draw_is_bernoulli_of_the_pixel():
    n = 20_000
    grey = torch.arange(256, dtype=torch.uint8).expand(n, 256)
    drawn = data.binarize(grey, "dynamic", torch.Generator().manual_seed(1))
    assert set(drawn.unique().tolist()) == {0, 255}
    frequency = (drawn == 255).double().mean(dim=0)
    p = torch.arange(256) / 255
    error = (frequency - p).abs() / (p * (1 - p) / n).sqrt().clamp(min=1e-12)
    assert error[1:-1].max() < 4.5  # standard errors, over 254 values
    assert (frequency[0], frequency[255]) == (0, 1)


def test_threshold_and_none():
    grey, rng = torch.arange(256, dtype=torch.uint8), torch.Generator()
    assert torch.equal(data.binarize(grey, "threshold", rng) == 255, grey / 255 > 0.5)
    assert torch.equal(data.binarize(grey, "none", rng), grey)


def test_the_fixed_draw_is_one_draw_for_ever(splits):
    """Published figures hang on these very bits: they may never change, on any machine."""
    torch.manual_seed(1)
    fixed = data.fixed_binarization(splits["test"][0], "dynamic")
    bits = hashlib.sha256((fixed // 255).numpy().tobytes()).hexdigest()
    assert bits == "ce468d30eebbbf07f465c57f3489f10450e0e7d53821b66496fcce20b19198d3"


def test_batches_are_the_images_in_their_order_as_floats(splits):
    images, order = splits["test"][0][:10], torch.tensor([3, 1, 4, 1, 5])
    found = [*data.batches(images, order, 2, "none", torch.Generator())]
    assert [len(x) for x in found] == [2, 2, 1]
    torch.testing.assert_close(torch.cat(found), images[[3, 1, 4, 1, 5]].double().div(255).float())


def test_training_draws_differ_from_batch_to_batch(splits):
    images, rng = splits["train"][0][:50], torch.Generator().manual_seed(0)
    first, second = data.batches(images, torch.arange(50).repeat(2), 50, "dynamic", rng)
    assert not torch.equal(first, second)
    torch.testing.assert_close((first + second).unique(), torch.tensor([0.0, 1.0, 2.0]))


def test_deformed_images_are_linear_maps_about_the_centre(splits):
    """Each pixel by hand: where it comes from, and the mean of the four pixels around there."""
    images = splits["train"][0][:2]
    found = data.deform(images, 0.2, torch.Generator().manual_seed(1))
    noise = torch.randn(2, 2, 2, generator=torch.Generator().manual_seed(1))
    maps = (torch.eye(2) + 0.2 * noise).tolist()
    for image, moved, ((a, b), (c, d)) in zip(images[:, 0], found[:, 0], maps, strict=True):
        for row, column in product(range(28), repeat=2):
            x, y = column - 13.5, row - 13.5
            x, y = a * x + b * y + 13.5, c * x + d * y + 13.5
            corners = product(*((math.floor(v), math.floor(v) + 1) for v in (y, x)))
            value = sum(
                image[i, j].item() * (1 - abs(y - i)) * (1 - abs(x - j))
                for i, j in corners
                if 0 <= i < 28 and 0 <= j < 28
            )
            assert moved[row, column].item() == pytest.approx(value, abs=0.51)


def test_an_unknown_name_is_refused_with_the_known_ones(splits):
    with pytest.raises(UserError, match=r"'ImageNet'.* MNIST, FashionMNIST, KMNIST"):
        data.load_mnist(DATA_DIR, "test", "ImageNet")
    with pytest.raises(UserError, match=r"'grey'.* none, dynamic, threshold"):
        data.fixed_binarization(splits["test"][0], "grey")


def data_dir_with(folder: Path, name: str, content: bytes) -> Path:
    """A new data_dir like ours, but for the content of the archive `name`."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for other in ARCHIVES:
        (raw / other).symlink_to(RAW / other)
    (raw / name).unlink()
    (raw / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_broken_archive_is_one_sentence_that_names_it(tmp_path, name):
    original = (RAW / name).read_bytes()
    content = gzip.decompress(original)
    flipped = original[:3000] + bytes([original[3000] ^ 1]) + original[3001:]
    broken = [b"", original[: len(original) // 2], original[:-8], flipped, b"<html>404</html>"]
    others = (b"hello", content + b"\0", content[:-1], b"\0\0\x08\x02" + content[4:])
    broken += [gzip.compress(other, 1) for other in others]
    for i, archive in enumerate(broken):
        folder = data_dir_with(tmp_path / str(i), name, archive)
        with pytest.raises(UserError, match=rf"^\S+{name} [^\n]+\.$"):
            data.load_mnist(folder, "test")


def test_a_download_that_stops_half_way_leaves_no_archive(tmp_path, monkeypatch):
    stops_at = 1

    def download(root, download):
        raw = Path(root) / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for i, name in enumerate(ARCHIVES):
            if i == stops_at:
                (raw / name).write_bytes(b"half")
                raise KeyboardInterrupt
            shutil.copy(RAW / name, raw)

    monkeypatch.setattr(datasets, "MNIST", download)
    with pytest.raises(KeyboardInterrupt):
        data.load_mnist(tmp_path, "test")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    stops_at = None
    images, _ = data.load_mnist(tmp_path, "test")
    assert len(images) == 10_000
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == list(ARCHIVES)


def test_a_download_that_fails_is_one_sentence(tmp_path, monkeypatch):
    def download(root, download):
        raise RuntimeError("no network\nat all")

    monkeypatch.setattr(datasets, "KMNIST", download)
    with pytest.raises(UserError, match=r"^KMNIST is not in [^\n]+ \(no network at all\)[^\n]+\.$"):
        data.load_mnist(tmp_path, "test", "KMNIST")
