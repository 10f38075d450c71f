"""Random streams, and two processes as torchrun starts them: one writes, both agree."""

import json
import subprocess
import sys
import time
from pathlib import Path

from utils.checkpoint import load_checkpoint
from utils.cli import DATA_DIR
from utils.device import pick_device, rng

import pytest
import torch
from conftest import ENVIRONMENT, PROGRAMS, TINY, read_rows, refusal, words

from data import load_mnist
from train import Settings, validate

FLAGS = (*TINY, "--n_epochs 2 --batch_size 64 --save_dir run --prior flow")


def torchrun(folder: Path, *flags: str, **environment: str) -> subprocess.CompletedProcess:
    """`torchrun --nproc_per_node=2 train.py`, with the few lines of worker.py around it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [PROGRAMS / "worker.py", *words((*FLAGS, *flags))]
    how = {"capture_output": True, "text": True, "timeout": 120, "check": False}
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT | environment, **how)


def test_two_processes_train_one_model(tmp_path):
    """With an odd number of images, of which one is left out in each epoch."""
    done = torchrun(tmp_path, "--n_train 255 --n_importance_samples 3 --slow_encoder 5")
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in (0, 1))
    assert first["wrote"]
    assert second["wrote"] == []
    assert done.stdout.count("epoch 2/2") == 1
    assert first["weights"] == second["weights"]
    assert first["figures"] == second["figures"]
    assert first["means"] == second["means"] == [[[0.5] * 3] * 2, [0.0, 0.5, 1.0, 1.5]]
    shares = [{*a, *b} for a, b in zip(first["orders"], second["orders"], strict=True)]
    assert [len(share) for share in shares] == [254, 254]  # disjoint
    assert first["orders"][0] != first["orders"][1]

    # One process finds the same validation figures for the same weights.
    model, checkpoint = load_checkpoint(tmp_path / "run" / "last.pth")
    assert {name: w.tolist() for name, w in checkpoint["weights"].items()} == first["weights"]
    assert all(parameter.any() for parameter in model.prior.parameters())  # it has learned
    images, _ = load_mnist(DATA_DIR, "val")
    row = read_rows(tmp_path / "run" / "metrics.csv")[-1]
    for name, value in validate(model, images, Settings()).items():
        assert float(row[name]) == pytest.approx(value, rel=1e-6)


def test_a_killed_process_ends_the_job(tmp_path):
    start = time.monotonic()
    done = torchrun(tmp_path, DIES="1")
    assert done.returncode not in (0, None)
    assert time.monotonic() - start < 100
    assert "epoch 1/2" not in done.stdout
    load_checkpoint(tmp_path / "run" / "last.pth")


@pytest.mark.parametrize("flags", ["--batch_size 65", "--n_train 1"])
def test_what_two_processes_cannot_share_is_one_sentence(trainer, tmp_path, flags):
    before = "os.environ.update(WORLD_SIZE='2')"
    assert flags in refusal(trainer(tmp_path, *FLAGS, flags, before=before))
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there_is_refused(trainer, tmp_path):
    assert pick_device("auto").type in ("cpu", "mps")
    assert "--device cuda" in refusal(trainer(tmp_path, "--device cuda --save_dir run"))


def test_every_draw_of_a_run_has_a_stream_of_its_own():
    rests = ((), (0, 1), (0, 2), (1, 1))
    seeds = [(seed, epoch, *rest) for seed in range(3) for epoch in range(3) for rest in rests]
    draws = {tuple(torch.rand(4, generator=rng(*seed)).tolist()) for seed in seeds}
    assert len(draws) == len(seeds)
