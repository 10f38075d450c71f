"""Checkpoints: what is saved is loaded; a damaged or foreign file is one sentence, runs no code."""

import os
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from conftest import contents, random_model, save_model

from checkpoint import load_checkpoint, save_checkpoint
from utils.cli import UserError


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = random_model(latent_dim=1, width=1, n_blocks=1)
    return save_model(tmp_path_factory.mktemp("small") / "small.pth", model)


def reason(path: Path) -> str | None:
    """The sentence that refuses a file, None if it loads; other exceptions pass through."""
    try:
        load_checkpoint(path)
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("config", [{}, {"arch": "conv", "latent_dim": 3}, {"prior": "flow"}])
def test_a_checkpoint_is_what_was_saved(tmp_path, config):
    model, path, metrics = random_model(**config).train(), tmp_path / "a.pth", [{"lr": 0.1}]
    args = Namespace(dataset="KMNIST", binarize="none", save_dir=Path("run"), seed=3)
    save_checkpoint(path, model, args, metrics, more={"x": 1})
    loaded, content = load_checkpoint(path)
    assert loaded.config == model.config
    assert not loaded.training
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert content["args"] == {"dataset": "KMNIST", "binarize": "none", "seed": 3}
    assert (content["metrics"], content["more"]) == (metrics, {"x": 1})


class RunsCode:
    """Unpickled without care, it makes a folder."""

    def __reduce__(self):
        return os.mkdir, ("proof",)


def test_no_code_from_a_file_is_run(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = torch.load(small, weights_only=True) | {"args": RunsCode()}
    torch.save(content, "evil.pth")
    assert reason(tmp_path / "evil.pth")
    assert not os.path.exists("proof")
    torch.load("evil.pth", weights_only=False)
    assert os.path.exists("proof")


def test_a_file_of_another_kind_is_named(small, tmp_path):
    content, path = torch.load(small, weights_only=True), tmp_path / "other.pth"
    config = content["config"]
    for other, says in (
        (random_model().state_dict(), "a file without a model's config, such as a bare state_dict"),
        (random_model(), "a pickle of a whole model or of other Python objects"),
        (content | {"config": config | {"width": 2}}, "not from this version of train.py"),
        (content | {"config": config | {"size": 1}}, "not from this version of train.py"),
    ):
        torch.save(other, path)
        assert reason(path) == f"{path} is {says}; give a .pth file that train.py wrote."
    for other in (b"", b"PK\x03\x04", b"hello", small.read_bytes()[:-1]):
        path.write_bytes(other)
        assert "damaged, or not a PyTorch file" in reason(path)
    assert all("is not a file; give" in reason(p) for p in (tmp_path, tmp_path / "missing.pth"))


def test_a_damaged_checkpoint_is_refused_or_unchanged(small, tmp_path):
    """A bit is flipped, or the file ends, at a dozen places; PyTorch compares no checksums."""
    path, whole = tmp_path / "damaged.pth", small.read_bytes()
    bias = load_checkpoint(small)[0].output_bias.detach().numpy().tobytes()
    for place in (whole.index(bias), *range(0, len(whole), len(whole) // 12)):
        flipped = bytearray(whole)
        flipped[place] ^= 1
        for content in (flipped, whole[:place]):
            path.write_bytes(content)
            assert reason(path) or contents(path) == contents(small)
