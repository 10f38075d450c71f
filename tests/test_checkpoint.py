"""Broken and hostile files: one clear sentence, no code run; never another exception, never a wrong model."""

import gzip
import io
import os
import pickle
import shutil
import zipfile
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest
import torch
from conftest import TINY, liven, one_sentence, run_script
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import checkpoint
import data
from checkpoint import load_checkpoint, save_checkpoint
from errors import UserError
from model import VAE, VAEConfig

FLAGS = {"dataset": "MNIST", "binarize": "none"}
FUZZ = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck), "database": None}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest checkpoint there is."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("small") / "small.pth"
    save_checkpoint(path, VAE(VAEConfig(latent_dim=1, width=1, n_blocks=1)), FLAGS, [{"epoch": 1}], training={"step": 1})
    return path


def content_of(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def load_or_sentence(path: Path) -> tuple[VAE, dict] | None:
    """What `load_checkpoint` gives, or None if it refuses with one sentence; any other exception passes through."""
    try:
        return load_checkpoint(path)
    except UserError as error:
        sentence = str(error)
    assert str(path) in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence
    return None


def test_a_checkpoint_is_what_was_saved(tmp_path):
    for config in (VAEConfig(width=8), VAEConfig("conv", latent_dim=3, width=4, n_blocks=1)):
        model = VAE(config)
        save_checkpoint(tmp_path / "a.pth", model, FLAGS, [{"epoch": 1}])
        loaded, content = load_checkpoint(tmp_path / "a.pth")
        assert loaded.config == config
        assert not loaded.training
        torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
        assert (content["args"], content["metrics"]) == (FLAGS, [{"epoch": 1}])
        assert "training" not in content


def test_a_checkpoint_keeps_its_flow(tmp_path):
    model = VAE(VAEConfig(latent_dim=3, width=8, prior="flow"))
    liven(model.prior)
    save_checkpoint(tmp_path / "a.pth", model, FLAGS, [])
    loaded, _ = load_checkpoint(tmp_path / "a.pth")
    z = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    assert loaded.config == model.config
    assert loaded.prior.state_dict().keys() == model.prior.state_dict().keys()
    assert torch.equal(loaded.prior.log_prob(z), model.prior.log_prob(z))


class RunsCode:
    """Unpickled without care, it leaves a file behind."""

    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"touch {self.proof}",)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_no_code_from_a_file_is_run(small, tmp_path, form, wrapped):
    proof, path = tmp_path / "proof", tmp_path / "evil.pth"
    content = content_of(small) | {"args": RunsCode(proof)} if wrapped else RunsCode(proof)
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    assert load_or_sentence(path) is None
    assert not proof.exists()
    pickle.loads(pickle.dumps(content))
    assert proof.exists()  # so it would have run


FOREIGN = {
    "another model": lambda c: nn.Linear(2, 2).state_dict(),
    "a list": lambda c: [c],
    "a tensor": lambda c: torch.zeros(3),
    "older format": lambda c: c | dict(format="vae-checkpoint-0"),
    "no format": lambda c: {key: value for key, value in c.items() if key != "format"},
    "no weights": lambda c: c | dict(weights={}),
    "another width": lambda c: c | dict(config=c["config"] | {"width": 2}),
    "another latent_dim": lambda c: c | dict(config=c["config"] | {"latent_dim": 2}),
    "huge": lambda c: c | dict(config=c["config"] | {"arch": "conv", "width": 4096, "n_blocks": 64, "latent_dim": 1024}),
    "width 0": lambda c: c | dict(config=c["config"] | {"width": 0}),
    "width in text": lambda c: c | dict(config=c["config"] | {"width": "1"}),
    "unknown arch": lambda c: c | dict(config=c["config"] | {"arch": "transformer"}),
    "unknown prior": lambda c: c | dict(config=c["config"] | {"prior": "gamma"}),
    "unknown config": lambda c: c | dict(config=c["config"] | {"depth": 1}),
    "nan": lambda c: c | dict(weights=c["weights"] | {"output_bias": torch.full((1, 28, 28), float("nan"))}),
    "inf": lambda c: c | dict(weights=c["weights"] | {"output_bias": torch.full((1, 28, 28), float("inf"))}),
    "no flags": lambda c: c | dict(args={}),
    "dataset elsewhere": lambda c: c | dict(args=FLAGS | {"dataset": "../../home"}),
    "dataset not ours": lambda c: c | dict(args=FLAGS | {"dataset": "ImageNet"}),
    "unknown binarisation": lambda c: c | dict(args=FLAGS | {"binarize": 3}),
    "metrics in text": lambda c: c | dict(metrics="none yet"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_checkpoint_is_one_sentence(small, tmp_path, kind):
    torch.save(FOREIGN[kind](content_of(small)), tmp_path / "foreign.pth")
    assert load_or_sentence(tmp_path / "foreign.pth") is None


def test_a_small_file_that_names_a_huge_model_takes_no_memory(small, tmp_path):
    torch.save(FOREIGN["huge"](content_of(small)), tmp_path / "huge.pth")
    with pytest.raises(UserError, match="too small for the model"):
        load_checkpoint(tmp_path / "huge.pth")


def zip_bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**8))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"hello", b"\x80\x02}.", zip_bomb()], ids=["empty", "zip header", "text", "pickle", "bomb"]
)
def test_a_file_that_is_no_checkpoint_is_one_sentence(tmp_path, content):
    (tmp_path / "file.pth").write_bytes(content)
    assert load_or_sentence(tmp_path / "file.pth") is None


def test_a_missing_file_and_a_folder_are_one_sentence(tmp_path):
    assert load_or_sentence(tmp_path) is None
    assert load_or_sentence(tmp_path / "missing.pth") is None


positions = st.integers(0, 2**31)
changes = st.one_of(
    st.tuples(st.just("flip"), positions, st.integers(0, 7)),
    st.tuples(st.just("cut"), positions, st.integers(1, 2000)),
    st.tuples(st.just("insert"), positions, st.binary(min_size=1, max_size=100)),
    st.tuples(st.just("zero"), positions, st.integers(1, 2000)),
    st.tuples(st.just("truncate"), positions, st.none()),
)


def mutated(content: bytes, mutations: list[tuple]) -> bytes:
    content = bytearray(content)
    for kind, position, value in mutations:
        i = position % max(1, len(content))
        if kind == "flip" and content:
            content[i] ^= 1 << value
        elif kind == "cut":
            del content[i : i + value]
        elif kind == "insert":
            content[i:i] = value
        elif kind == "zero":
            content[i : i + value] = bytes(len(content[i : i + value]))
        elif kind == "truncate":
            del content[i:]
    return bytes(content)


def test_a_mutated_checkpoint_is_refused_or_unchanged(small, tmp_path):
    original, outcomes = load_checkpoint(small), []

    @settings(max_examples=600, **FUZZ)
    @given(st.lists(changes, min_size=1, max_size=3))
    def fuzz(mutations):
        (tmp_path / "mutated.pth").write_bytes(mutated(small.read_bytes(), mutations))
        loaded = load_or_sentence(tmp_path / "mutated.pth")
        outcomes.append(loaded is None)
        if loaded:
            torch.testing.assert_close(loaded[0].state_dict(), original[0].state_dict(), rtol=0, atol=0)
            assert {k: v for k, v in loaded[1].items() if k != "weights"} == {
                k: v for k, v in original[1].items() if k != "weights"
            }

    fuzz()
    assert len(outcomes) >= 500
    assert sum(outcomes) > 300


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just(torch.ones(2))),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)


def test_any_content_is_refused_or_loads(small, tmp_path):
    content = content_of(small)
    paths = [(key,) for key in content] + [(key, inner) for key in ("config", "weights", "args") for inner in content[key]]

    @settings(max_examples=150, **FUZZ)
    @given(st.sampled_from(paths), values)
    def fuzz(path, value):
        *outer, last = path
        changed = dict(content)
        target = changed
        for key in outer:
            target[key] = dict(target[key])
            target = target[key]
        target[last] = value
        torch.save(changed, tmp_path / "changed.pth")
        load_or_sentence(tmp_path / "changed.pth")

    fuzz()


def test_a_write_that_is_interrupted_leaves_what_was_there(small, tmp_path, monkeypatch):
    path = tmp_path / "a.pth"
    shutil.copy(small, path)

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.write_atomically(path, b"half")
    assert path.read_bytes() == small.read_bytes()
    assert list(tmp_path.iterdir()) == [path]


def test_scripts_refuse_hostile_files_and_run_nothing(trainer, small, tmp_path):
    path = tmp_path / "evil.pth"
    torch.save(content_of(small) | {"metrics": [RunsCode(tmp_path / "proof")]}, path)
    for done in (
        trainer(tmp_path, "--resume", path),
        run_script("evaluate.py", "--model_params", path, cwd=tmp_path),
    ):
        assert done.returncode == 2
        assert str(path) in one_sentence(done.stderr)
    assert not (tmp_path / "proof").exists()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "changes",
    [
        *({"training": value} for value in (None, {}, {"optimizer": {}}, {"optimizer": {"state": {}, "param_groups": []}})),
        *({"args": FLAGS | change} for change in ({"lr": "high"}, {"n_epochs": None}, {"n_epochs": [3]}, {1: 2})),
        {"metrics": [{}, {}]},
    ],
    ids=str,
)
def test_a_foreign_state_to_resume_is_one_sentence(trainer, tiny_run, tmp_path, changes):
    shutil.copytree(tiny_run, tmp_path / "run")
    torch.save(content_of(tiny_run / "last.pth") | changes, tmp_path / "run" / "last.pth")
    refused = trainer(tmp_path, "--resume", "run/last.pth", "--n_epochs", "3")
    assert refused.returncode == 2
    one_sentence(refused.stderr)


def test_sigterm_is_not_taken_for_a_broken_file(trainer, tiny_run, tmp_path):
    stops = "import os, torch; torch.load = lambda *_, **__: os.kill(os.getpid(), 15)"
    assert trainer(tmp_path, "--resume", tiny_run / "last.pth", before=stops).returncode == 143


# Data archives: a folder for each, because what has been read once is remembered by its path.
ARCHIVES = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")


def data_dir_with(folder: Path, **contents: bytes) -> Path:
    """A new data_dir that holds the test images and labels, or what `contents` gives in the stead of `images`, `labels`."""
    raw = next(path for i in count() if not (path := folder / str(i)).exists()) / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, archive in zip(("images", "labels"), ARCHIVES, strict=True):
        if name in contents:
            (raw / archive).write_bytes(contents[name])
        else:
            (raw / archive).symlink_to(data.DATA_DIR / "MNIST" / "raw" / archive)
    return raw.parents[1]


def archive(name: str) -> bytes:
    return (data.DATA_DIR / "MNIST" / "raw" / name).read_bytes()


BROKEN_ARCHIVES = {
    "empty": lambda original: b"",
    "truncated": lambda original: original[: len(original) // 2],
    "without its checksum": lambda original: original[:-8],
    "bit flipped": lambda original: original[:3000] + bytes([original[3000] ^ 1]) + original[3001:],
    "foreign gzip": lambda original: gzip.compress(b"hello"),
    "text": lambda original: b"hello",
    "too long": lambda original: gzip.compress(gzip.decompress(original) + b"\0", 1),
    "too short": lambda original: gzip.compress(gzip.decompress(original)[:-1], 1),
    "other shape": lambda original: gzip.compress(b"\0\0\x08\x02" + gzip.decompress(original)[4:], 1),
    "a web page": lambda original: b"<html>404</html>",
}


@pytest.mark.parametrize("kind", BROKEN_ARCHIVES)
@pytest.mark.parametrize("which", ["images", "labels"])
def test_a_broken_archive_is_one_sentence_that_names_it(tmp_path, kind, which):
    name = ARCHIVES[which == "labels"]
    folder = data_dir_with(tmp_path, **{which: BROKEN_ARCHIVES[kind](archive(name))})
    with pytest.raises(UserError, match=name) as caught:
        data.load_mnist(folder, "test")
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_a_mutated_archive_is_refused_or_unchanged(tmp_path):
    original = archive(ARCHIVES[1])
    _, labels = data.load_mnist(data.DATA_DIR, "test")

    @settings(max_examples=200, **FUZZ)
    @given(st.lists(changes, min_size=1, max_size=2))
    def fuzz(mutations):
        folder = data_dir_with(tmp_path / "fuzz", labels=mutated(original, mutations))
        with suppress(UserError):
            assert torch.equal(data._read_idx(folder / "MNIST" / "raw" / ARCHIVES[1], (10_000,)).long(), labels)

    fuzz()


def test_a_script_says_which_archive_is_broken(trainer, tmp_path):
    folder = data_dir_with(tmp_path)
    (folder / "MNIST" / "raw" / "train-images-idx3-ubyte.gz").write_bytes(b"hello")
    (folder / "MNIST" / "raw" / "train-labels-idx1-ubyte.gz").write_bytes(b"hello")
    done = trainer(tmp_path, *TINY, "--data_dir", folder, "--save_dir", "run")
    assert done.returncode == 2
    assert "train-images-idx3-ubyte.gz" in one_sentence(done.stderr)
    assert not (tmp_path / "run" / "last.pth").exists()


def test_a_download_that_stops_half_way_leaves_no_archive(tmp_path, monkeypatch):
    datasets = pytest.importorskip("torchvision.datasets")
    stops_at = 1

    def download(root, download):
        raw = Path(root) / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for i, name in enumerate(ARCHIVES):
            if i == stops_at:
                (raw / name).write_bytes(b"half")
                raise KeyboardInterrupt
            shutil.copy(data.DATA_DIR / "MNIST" / "raw" / name, raw)

    monkeypatch.setattr(datasets, "MNIST", download)
    with pytest.raises(KeyboardInterrupt):
        data.load_mnist(tmp_path, "test")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    stops_at = None
    images, labels = data.load_mnist(tmp_path, "test")
    assert (len(images), len(labels)) == (10_000, 10_000)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == list(ARCHIVES)
