"""Two processes train as torchrun starts them: one writes, both agree, and neither waits for ever for a dead one."""

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ENVIRONMENT, TINY, one_sentence

from checkpoint import load_checkpoint
from data import DATA_DIR, load_mnist
from train import held_out_figures, make_parser

# train.py, which leaves behind what its process ended with. The second process can be told to die after its first epoch.
WORKER = """
import json, os, signal, sys
import torch
import checkpoint, cli, train

rank = int(os.environ["RANK"])
held_out_figures = train.held_out_figures
seen = {"figures": [], "wrote": []}

def note_figures(model, images, args, precision):
    if rank == 1 and os.environ.get("DIES"):
        os.kill(os.getpid(), signal.SIGKILL)
    figures = held_out_figures(model, images, args, precision)
    seen["figures"].append(figures)
    seen["weights"] = {name: tensor.tolist() for name, tensor in model.state_dict().items()}
    return figures

def note_writes(event, args):
    if event in ("os.rename", "os.mkdir") or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR)):
        if "run" in str(args[0]).split(os.sep):
            seen["wrote"].append(str(args[0]))

train.held_out_figures = note_figures
sys.addaudithook(note_writes)
try:
    cli.run(train.main)
finally:
    with open(f"rank_{rank}.json", "w") as file:
        json.dump(seen, file)
"""
FLAGS = (*TINY, "--n_epochs", "2", "--batch_size", "64", "--save_dir", "run")


def torchrun(folder: Path, *flags: str, **environment: str) -> subprocess.CompletedProcess:
    """`torchrun --nproc_per_node=2 train.py`, with the few lines of WORKER around train.py's main."""
    (folder / "worker.py").write_text(WORKER)
    command = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "worker.py", *FLAGS, *flags)
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(("prior", "n_iw_samples"), [("normal", "1"), ("flow", "3")])
def test_two_processes_train_one_model(tmp_path, prior, n_iw_samples):
    done = torchrun(tmp_path, "--prior", prior, "--n_iw_samples", n_iw_samples)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in (0, 1))

    assert first["wrote"]
    assert second["wrote"] == []
    assert done.stdout.count("epoch 2/2") == 1
    assert first["weights"] == second["weights"]
    assert first["figures"][:2] == second["figures"]

    # One process finds the same validation figures for the same weights.
    model, checkpoint = load_checkpoint(tmp_path / "run" / "last.pth")
    assert {name: tensor.tolist() for name, tensor in checkpoint["weights"].items()} == second["weights"]
    assert all(tensor.any() for name, tensor in checkpoint["weights"].items() if name.startswith("prior."))  # it has learned
    args = make_parser().parse_args([*TINY, "--prior", prior])
    args.device = torch.device("cpu")
    images, _ = load_mnist(DATA_DIR, "val")
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        row = list(csv.DictReader(file))[-1]
    for name, value in held_out_figures(model, images, args, "fp32").items():
        assert float(row[f"val_{name}"]) == pytest.approx(value, rel=1e-6)


def test_a_killed_process_ends_the_job(tmp_path):
    start = time.monotonic()
    done = torchrun(tmp_path, DIES="1")
    assert done.returncode not in (0, None)
    assert time.monotonic() - start < 100
    assert "epoch 1/2" not in done.stdout
    load_checkpoint(tmp_path / "run" / "last.pth")


def test_a_batch_that_does_not_split_is_one_sentence(trainer, tmp_path):
    done = trainer(tmp_path, *FLAGS, "--batch_size", "65", before="import os; os.environ['WORLD_SIZE'] = '2'")
    assert done.returncode == 2
    assert "--batch_size 65" in one_sentence(done.stderr)
    assert not (tmp_path / "run").exists()
