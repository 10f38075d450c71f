"""The digits against torchvision's own reading, binarisation and batches; damaged archives."""

import gzip
import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from torchvision import datasets

import data
from utils.cli import DATA_DIR, UserError

RAW = DATA_DIR / "MNIST" / "raw"
ARCHIVES = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")


@pytest.fixture(scope="module")
def digits() -> torch.Tensor:
    return data.load_mnist(DATA_DIR, "test")[0][:50]


def test_the_digits_are_those_that_torchvision_reads(tmp_path):
    """Shapes, order and types too; "train" and "val" are the training archive, cut in two."""
    shutil.copytree(DATA_DIR / "MNIST", tmp_path / "MNIST")
    sizes = {"train": slice(0, 50_000), "val": slice(50_000, 60_000), "test": slice(0, 10_000)}
    for split, part in sizes.items():
        images, labels = data.load_mnist(DATA_DIR, split)
        # Nothing is downloaded: torchvision verifies the MD5 sums of the archives.
        theirs = datasets.MNIST(tmp_path, train=split != "test", download=True)
        assert images.shape == (part.stop - part.start, 1, 28, 28)
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
    assert torch.equal(data.binarize(grey, "none"), grey)


def test_the_fixed_draw_never_changes():
    """Published metrics depend on these very bits, on any machine."""
    torch.manual_seed(1)
    fixed = data.binarize(data.load_mnist(DATA_DIR, "test")[0], "dynamic")
    bits = hashlib.sha256((fixed // 255).numpy().tobytes()).hexdigest()
    assert bits == "ce468d30eebbbf07f465c57f3489f10450e0e7d53821b66496fcce20b19198d3"


def test_batches_are_all_images_shuffled_anew_as_floats(digits):
    rng = torch.Generator().manual_seed(0)
    first, second = ([*data.batches(digits, 20, "none", rng)] for _ in range(2))
    assert [len(x) for x in first] == [20, 20, 10]
    assert not torch.equal(first[0], second[0])
    for epoch in (first, second):
        found = torch.cat(epoch).flatten(1).tolist()
        assert sorted(found) == sorted((digits / 255).flatten(1).tolist())


@pytest.mark.parametrize(("mode", "strength"), [("dynamic", 0.0), ("none", 0.2)])
def test_batches_are_binarised_and_deformed_anew(digits, mode, strength):
    same, rng = digits[:1].expand(50, 1, 28, 28), torch.Generator().manual_seed(0)
    drawn = torch.cat([*data.batches(same, 25, mode, rng, strength)])
    assert len(drawn.unique(dim=0)) == 50
    assert (len(drawn.unique()) == 2) == (mode == "dynamic")


def test_deformed_images_are_linear_maps_about_the_centre(digits):
    """Each pixel is a mean of those around the point that it comes from, bilinear."""
    found = data.deform(digits[:2], 0.2, torch.Generator().manual_seed(1))
    noise = torch.randn(2, 2, 2, generator=torch.Generator().manual_seed(1))
    maps, pixel = torch.eye(2) + 0.2 * noise, torch.arange(28.0)
    y, x = torch.meshgrid(pixel - 13.5, pixel - 13.5, indexing="ij")
    for image, moved, (row_x, row_y) in zip(digits[:2], found, maps, strict=True):
        from_x, from_y = (a * x + b * y + 13.5 for a, b in (row_x, row_y))  # (28, 28) each
        weights = ((1 - (v[..., None] - pixel).abs()).clamp(0) for v in (from_y, from_x))
        truth = torch.einsum("rci,rcj,ij->rc", *weights, image[0].float())
        torch.testing.assert_close(moved[0].float(), truth, atol=0.51, rtol=0)


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_damaged_archive_is_one_sentence_that_names_it(tmp_path, name):
    original = (RAW / name).read_bytes()
    flipped = original[:3000] + bytes([original[3000] ^ 1]) + original[3001:]
    longer = gzip.compress(gzip.decompress(original) + b"\0", 1)
    damaged = [b"", original[: len(original) // 2], original[:-8], flipped, longer, b"<html>404"]
    for i, content in enumerate(damaged):
        raw = tmp_path / str(i) / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for other in ARCHIVES:
            (raw / other).symlink_to(RAW / other)
        (raw / name).unlink()
        (raw / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"^\S+{name} [^\n]+\.$"):
            data.load_mnist(tmp_path / str(i), "test")


def test_extracted_archives_are_read_and_a_short_one_is_one_sentence(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ARCHIVES:
        (raw / name[:-3]).write_bytes(gzip.decompress((RAW / name).read_bytes()))
    found, truth = (data.load_mnist(folder, "test") for folder in (tmp_path, DATA_DIR))
    assert all(map(torch.equal, found, truth))
    data._read_idx.cache_clear()
    (raw / "t10k-labels-idx1-ubyte").write_bytes(b"short")
    with pytest.raises(UserError, match="ubyte is damaged"):
        data.load_mnist(tmp_path, "test")


def test_a_missing_archive_is_downloaded_or_one_sentence_says_why_not(tmp_path, monkeypatch):
    def download(root: Path, download: bool):
        shutil.copytree(RAW, Path(root) / "MNIST" / "raw")

    def fail(root: Path, download: bool):
        raise RuntimeError("Error downloading a:\nTried b, got:\nc\n")  # as torchvision says it

    monkeypatch.setattr(datasets, "MNIST", download)
    monkeypatch.setattr(datasets, "KMNIST", fail)
    images, _ = data.load_mnist(tmp_path, "test")
    assert torch.equal(images, data.load_mnist(DATA_DIR, "test")[0])
    with pytest.raises(UserError, match=r"^KMNIST is not in [^\n]+ got: c[^\n]+\.$"):
        data.load_mnist(tmp_path, "test", "KMNIST")
