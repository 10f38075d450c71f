"""The digits against torchvision's own reading, the split, the binarisation against counting."""

import hashlib
import shutil

import pytest
import torch
from torchvision.datasets import MNIST

import data

SIZES = {"train": 50_000, "val": 10_000, "test": 10_000}


@pytest.fixture(scope="module")
def splits():
    return {split: data.load_mnist(data.DATA_DIR, split) for split in SIZES}


def test_the_digits_are_those_that_torchvision_reads(splits, tmp_path):
    shutil.copytree(data.DATA_DIR / "MNIST", tmp_path / "MNIST")
    theirs = {train: MNIST(tmp_path, train=train, download=True) for train in (True, False)}  # verifies the MD5 sums
    images = torch.cat([splits["train"][0], splits["val"][0]])
    labels = torch.cat([splits["train"][1], splits["val"][1]])
    assert torch.equal(images[:, 0], theirs[True].data)  # so the two parts are disjoint and complete, in order
    assert torch.equal(labels, theirs[True].targets)
    assert torch.equal(splits["test"][0][:, 0], theirs[False].data)
    assert torch.equal(splits["test"][1], theirs[False].targets)


@pytest.mark.parametrize("split", SIZES)
def test_sizes_shapes_and_types(splits, split):
    images, labels = splits[split]
    assert images.shape == (SIZES[split], 1, 28, 28)
    assert images.dtype == torch.uint8
    assert labels.shape == (SIZES[split],)
    assert labels.dtype == torch.int64


def test_a_dynamic_draw_is_bernoulli_of_the_pixel():
    n = 20_000
    grey = torch.arange(256, dtype=torch.uint8).expand(n, 256)
    drawn = data.binarize(grey, "dynamic", torch.Generator().manual_seed(1))
    assert set(drawn.unique().tolist()) == {0, 255}
    frequency = (drawn == 255).double().mean(dim=0)
    p = torch.arange(256) / 255
    error = (frequency - p).abs() / (p * (1 - p) / n).sqrt().clamp(min=1e-12)
    assert error[1:-1].max() < 4.5  # standard errors, over 254 values
    assert frequency[0] == 0
    assert frequency[255] == 1


def test_threshold_and_none():
    grey = torch.arange(256, dtype=torch.uint8)
    rng = torch.Generator()
    assert torch.equal(data.binarize(grey, "threshold", rng) == 255, grey / 255 > 0.5)
    assert torch.equal(data.binarize(grey, "none", rng), grey)


def test_the_fixed_draw_is_one_draw_for_ever(splits):
    images = splits["test"][0]
    torch.manual_seed(1)
    fixed = data.fixed_binarization(images, "dynamic")
    torch.manual_seed(2)
    assert torch.equal(fixed, data.fixed_binarization(images, "dynamic"))
    # Published figures hang on these very bits: they may never change, on any machine.
    bits = hashlib.sha256((fixed // 255).numpy().tobytes()).hexdigest()
    assert bits == "ce468d30eebbbf07f465c57f3489f10450e0e7d53821b66496fcce20b19198d3"


def test_a_batch_is_the_images_of_its_index_as_floats(splits):
    images = splits["test"][0][:10]
    index = torch.tensor([3, 1, 4])
    (x,) = data.batches(images, [index], torch.device("cpu"), "none", torch.Generator())
    torch.testing.assert_close(x, torch.stack([images[3], images[1], images[4]]).double().div(255).float())


def test_training_draws_differ_from_epoch_to_epoch(splits):
    images, rng = splits["train"][0][:50], torch.Generator().manual_seed(0)
    index = torch.arange(50)
    first, second = data.batches(images, [index, index], torch.device("cpu"), "dynamic", rng)
    assert not torch.equal(first, second)
