"""What the tests share: random models, the scripts in processes of their own, a tiny run."""

import csv
import json
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers on two cores, before torch is imported
import pytest
import torch
from torch import Tensor, nn

from checkpoint import save_checkpoint
from data import binarize, load_mnist
from loss import bernoulli_nll
from model import VAE, VAEConfig
from utils.cli import DATA_DIR, ROOT

PROGRAMS = ROOT / "tests" / "programs"
TINY = ["--n_train", "256", "--batch_size", "128", "--width", "16", "--n_blocks", "1"]
TINY += ["--precision", "fp32", "--device", "cpu"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def words(args: tuple[str | Path, ...]) -> list[str]:
    """The words of a command line; an argument that begins with -- may hold several."""
    split = (arg.split() if arg.startswith("--") else [arg] for arg in map(str, args))
    return [word for part in split for word in part]


def run_script(
    script: str | Path, *args: str | Path, cwd: Path, **environment: str
) -> subprocess.CompletedProcess:
    """Runs a script of this repository in a process of its own, with `cwd` as its folder."""
    command = [sys.executable, str(ROOT / script), *words(args)]
    how = {"capture_output": True, "text": True, "timeout": 300, "check": False}
    return subprocess.run(command, cwd=cwd, env=ENVIRONMENT | environment, **how)


def one_sentence(stderr: str) -> str:
    """The sentence of the one error line that `stderr` must be."""
    lines = stderr.splitlines()
    assert len(lines) == 1, stderr
    assert lines[0].startswith("error: "), stderr
    assert lines[0].endswith("."), stderr
    return lines[0]


def refusal(done: subprocess.CompletedProcess) -> str:
    """The one sentence with which a script must have refused."""
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    return one_sentence(done.stderr)


def read_rows(path: Path) -> list[dict]:
    """A metrics.csv, all values as text."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def contents(path: Path) -> str:
    """All of a checkpoint but the seconds that its epochs took."""
    checkpoint = torch.load(path, weights_only=True)
    for row in checkpoint["metrics"]:
        row.pop("seconds", None)
    return json.dumps(checkpoint, default=torch.Tensor.tolist)


def liven(prior: nn.Module) -> nn.Module:
    """Gives a flow random weights: a new one is the standard normal even if its code is wrong."""
    torch.manual_seed(7)
    for coupling in prior.couplings:
        *hidden, last = (layer for layer in coupling.net.modules() if isinstance(layer, nn.Linear))
        for layer in hidden:
            layer.reset_parameters()
        nn.init.normal_(last.weight, std=0.008)
        nn.init.normal_(last.bias, std=0.15)
    return prior


def random_model(arch="mlp", latent_dim=2, width=16, n_blocks=3, prior="normal") -> VAE:
    """An untrained model whose weights are all random, none zero, so that logits vary with z."""
    torch.manual_seed(0)
    model = VAE(VAEConfig(arch, latent_dim, width, n_blocks, prior)).eval()
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            for parameter in layer.parameters():
                nn.init.normal_(parameter, std=layer.weight[0].numel() ** -0.5)
    nn.init.normal_(model.output_bias)
    if prior == "flow":
        liven(model.prior)
    return model


def save_model(path: Path, model: VAE, **args) -> Path:
    """Writes a checkpoint of a model trained on MNIST, or as `args` say. Returns `path`."""
    save_checkpoint(path, model, Namespace(**{"dataset": "MNIST", "binarize": "none"} | args), [])
    return path


class Trainer:
    """Runs train.py as often as one likes, but imports it once."""

    def __init__(self):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        command = [sys.executable, PROGRAMS / "trainer.py"]
        self.process = subprocess.Popen(command, env=ENVIRONMENT, **pipes)

    def __call__(
        self, folder: Path, *flags: str | Path, before: str = ""
    ) -> subprocess.CompletedProcess:
        """Runs `train.py *flags` in `folder`, after a call of programs/faults.py."""
        job = {"folder": str(folder), "flags": words(flags), "before": before}
        print(json.dumps(job), file=self.process.stdin, flush=True)
        code = int(self.process.stdout.readline())
        output, errors = ((folder / name).read_text() for name in ("stdout", "stderr"))
        return subprocess.CompletedProcess(flags, code, output, errors)


@pytest.fixture(scope="session")
def trainer() -> Iterator[Trainer]:
    trainer = Trainer()
    yield trainer
    trainer.process.stdin.close()
    trainer.process.wait()


@pytest.fixture(scope="session")
def tiny_run(trainer: Trainer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of two epochs; no test writes to it."""
    folder = tmp_path_factory.mktemp("tiny")
    done = trainer(folder, *TINY, "--n_epochs 2 --save_dir run")
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture(scope="session")
def images():
    return binarize(load_mnist(DATA_DIR, "test")[0][:100], "dynamic")


@torch.no_grad()
def log_joint_on_a_plane(model: VAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """A grid of points z (G, 2), 0.1 apart, and log p(x, z) of three images x there (G, 3)."""
    axis = torch.linspace(-8, 8, 161)
    z = torch.cartesian_prod(axis, axis)
    logits = (model.decode(part)[:, None].expand(-1, 3, 1, 28, 28) for part in z.split(5000))
    nll = torch.cat([bernoulli_nll(part, x) for part in logits])
    return z, model.prior.log_prob(z)[:, None].double() - nll.double()
