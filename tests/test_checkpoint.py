"""Checkpoints, broken and hostile ones too: one clear sentence, no code run, no wrong model."""

import io
import os
import pickle
import random
import shutil
import zipfile
from pathlib import Path

from utils import checkpoint
from utils.checkpoint import load_checkpoint
from utils.cli import UserError

import pytest
import torch
from conftest import contents, random_model, refusal, save_model
from torch import nn

from model import VAE, VAEConfig


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest checkpoint there is."""
    model = VAE(VAEConfig(latent_dim=1, width=1, n_blocks=1))
    return save_model(tmp_path_factory.mktemp("small") / "small.pth", model)


def bytes_of(content: object, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def changed(path: Path, place: str, value: object) -> bytes:
    """The checkpoint in `path` with another value in a place such as "metrics" or "args.lr"."""
    content = torch.load(path, weights_only=True)
    key, _, name = place.partition(".")
    target, name = (content[key], name) if name else (content, key)
    target[name] = value
    return bytes_of(content)


def reason_of(path: Path, content: bytes) -> str | None:
    """The sentence that refuses `content`, None if it loads; other exceptions pass through."""
    path.write_bytes(content)
    try:
        load_checkpoint(path)
    except UserError as error:
        sentence = str(error)
        assert str(path) in sentence
        assert sentence.endswith(".")
        assert "\n" not in sentence
        return sentence
    return None


@pytest.mark.parametrize("config", [{}, {"arch": "conv", "latent_dim": 3}, {"prior": "flow"}])
def test_a_checkpoint_is_what_was_saved(tmp_path, config):
    model = random_model(**config).train()
    loaded, content = load_checkpoint(save_model(tmp_path / "a.pth", model, dataset="KMNIST"))
    assert loaded.config == model.config
    assert not loaded.training
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert content["args"] == {"dataset": "KMNIST", "binarize": "none"}
    loaded, _ = load_checkpoint(save_model(tmp_path / "half.pth", model.half()))
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


class RunsCode:
    """Unpickled without care, it leaves a file behind."""

    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"touch {self.proof}",)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_no_code_from_a_file_is_run(trainer, small, tmp_path, form):
    proof, path = tmp_path / "proof", tmp_path / "evil.pth"
    alone = RunsCode(proof)
    for content in (alone, torch.load(small, weights_only=True) | {"args": alone}):
        evil = pickle.dumps(content)
        if form != "pickle":
            evil = bytes_of(content, _use_new_zipfile_serialization=form == "zip")
        assert reason_of(path, evil)
        assert str(path) in refusal(trainer(tmp_path, "--resume", path))
        assert not proof.exists()
        pickle.loads(pickle.dumps(content))
        proof.unlink()  # so it would have run


BIAS, NAMES = torch.zeros(1, 28, 28), ["dataset", "binarize"]
HUGE = {"arch": "conv", "latent_dim": 1024, "width": 4096, "n_blocks": 64, "prior": "normal"}


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        ("format", "vae-checkpoint-1", "format is 'vae-checkpoint-1', not 'vae-checkpoint-2'"),
        ("weights.extra", BIAS, "Unexpected key"),
        ("weights.output_bias", BIAS.log(), "not all finite"),
        ("weights.output_bias", BIAS.log() * 0, "not all finite"),
        ("config.width", 2, "size mismatch"),
        ("config.width", "1", "width must be"),
        ("config.prior", "gamma", "prior must be"),
        ("config.depth", 1, "depth"),
        ("config", HUGE, "too small for the model"),
        ("args", {}, "dataset"),
        ("args", NAMES, "dataset"),
        ("metrics", "none yet", "rows"),
    ],
)
def test_a_foreign_checkpoint_is_refused_with_the_reason(small, tmp_path, place, value, reason):
    assert reason in reason_of(tmp_path / "foreign.pth", changed(small, place, value))


def zip_bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**8))
    return buffer.getvalue()


def test_a_file_that_is_no_checkpoint_is_one_sentence(tmp_path):
    path = tmp_path / "file.pth"
    contents = [b"", b"PK\x03\x04", b"hello", b"\x80\x02}.", zip_bomb()]
    contents += map(bytes_of, ([1], nn.Linear(2, 2).state_dict(), {"format": 1}))
    for content in contents:
        assert reason_of(path, content)
    for missing in (tmp_path, tmp_path / "missing.pth"):
        with pytest.raises(UserError, match="is not a file"):
            load_checkpoint(missing)


def test_a_mutated_checkpoint_is_refused_or_unchanged(small, tmp_path):
    """Up to three places are flipped, zeroed, cut out, filled in, or where the file ends."""
    path, original, rng, n_refused = tmp_path / "mutated.pth", contents(small), random.Random(0), 0
    for _ in range(600):
        content = small.read_bytes()
        for _ in range(rng.randint(1, 3)):
            i, length = rng.randrange(len(content) + 1), rng.choice((0, 1, 99, 2000, len(content)))
            new = rng.choice((b"", bytes(min(length, 99)), rng.randbytes(min(length, 1))))
            content = content[:i] + new + content[i + length :]
        if reason_of(path, content):
            n_refused += 1
        else:
            assert contents(path) == original
    assert 300 < n_refused < 600


def test_any_value_in_any_place_is_refused_or_loads(small, tmp_path):
    content = torch.load(small, weights_only=True)
    places = [f"{key}.{name}" for key in ("config", "weights", "args") for name in content[key]]
    for place in [*content, *places]:
        for value in (None, True, -1, 10**30, 0.5, "x\ny", [1], {"": 1}, torch.ones(2)):
            reason_of(tmp_path / "changed.pth", changed(small, place, value))


def test_a_write_that_is_interrupted_leaves_what_was_there(small, tmp_path, monkeypatch):
    path = Path(shutil.copy(small, tmp_path))

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.write_atomically(path, b"half")
    assert path.read_bytes() == small.read_bytes()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("training", None),
        ("training.optimizer", {"m": [], "v": [], "steps": []}),
        ("args.lr", "high"),
        ("args.unknown", 2),
        ("args.dataset", "../../home"),
        ("args.binarize", 3),
        ("metrics", [{}, {}]),
        ("metrics", [{"val_recon_loss": "low", "val_kld_loss": []}]),
    ],
)
def test_a_foreign_state_to_resume_is_one_sentence(trainer, tiny_run, tmp_path, place, value):
    shutil.copytree(tiny_run, tmp_path / "run")
    last_path = tmp_path / "run" / "last.pth"
    last_path.write_bytes(changed(last_path, place, value))
    refusal(trainer(tmp_path, "--resume run/last.pth --n_epochs 3"))


def test_sigterm_is_not_taken_for_a_broken_file(trainer, tiny_run, tmp_path):
    stopped = trainer(tmp_path, "--resume", tiny_run / "last.pth", before="sigterm_in_load()")
    assert stopped.returncode == 143
