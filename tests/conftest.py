"""What the tests share: random models, the scripts in processes of their own, a tiny run."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from threading import RLock

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers on two cores, before torch is imported
import pytest
import torch
from torch import Tensor, nn
from tqdm import tqdm

import data
import train
from checkpoint import save_checkpoint
from loss import bernoulli_nll
from model import VAE, VAEConfig
from utils import cli
from utils.cli import DATA_DIR, ROOT

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


def refusal(done: subprocess.CompletedProcess) -> str:
    """The one sentence with which a script must have refused."""
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert re.fullmatch(r"error: .*\.\n", done.stderr), done.stderr
    return done.stderr.strip()


def read_rows(path: Path) -> list[dict]:
    """A metrics.csv, all values as text."""
    return list(csv.DictReader(path.read_text().splitlines()))


def contents(path: Path) -> str:
    """All of a checkpoint but the seconds that its epochs took."""
    checkpoint = torch.load(path, weights_only=True)
    for row in checkpoint["metrics"]:
        row.pop("seconds", None)
    return json.dumps(checkpoint, default=lambda tensor: tensor.numpy().tobytes().hex())


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


def run_train(folder: Path, before: Callable[[], None], argv: list[str]) -> int:
    """Runs train.py in `folder`, writes its output to files, and returns its exit code."""
    os.chdir(folder)
    sys.argv = ["train.py", "--device", "cpu", *argv]  # also where there is a GPU
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a worker of pytest ignores it
    data.SPLITS["val"] = ("train", 60_000, slice(50_000, 50_200))  # few images, for speed
    train.SAVE_SECONDS = -1  # last.pth after each epoch
    tqdm.set_lock(RLock())  # its own is shared by forks, and a killed one would hold it for ever
    with open("stdout", "w") as sys.stdout, open("stderr", "w") as sys.stderr:
        try:
            before()
            cli.run(train.main)
            return 0
        except SystemExit as end:
            return end.code
        except Exception:
            traceback.print_exc()
            return 1


@pytest.fixture(scope="session")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Callable:
    """Runs `train.py *flags` in a folder, in a forked process, which calls `before` first."""
    # One epoch here does all imports, so that no fork repeats them.
    args = train.parse_flags([*TINY, "--save_dir", str(tmp_path_factory.mktemp("first"))])
    images = data.load_mnist(DATA_DIR, "train")[0][:256]
    run = train.build(args, images)
    train.run_epoch(run, images, images, args)
    train.save(run, args)

    def trainer(folder: Path, *flags, before: Callable[[], None] = lambda: None):
        if (child := os.fork()) == 0:
            os._exit(run_train(folder, before, words(flags)))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        output, errors = ((folder / name).read_text() for name in ("stdout", "stderr"))
        return subprocess.CompletedProcess(flags, code, output, errors)

    return trainer


@pytest.fixture(scope="session")
def tiny_run(trainer: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of two epochs; no test writes to it."""
    folder = tmp_path_factory.mktemp("tiny")
    assert trainer(folder, *TINY, "--n_epochs 2 --save_dir run").returncode == 0
    return folder / "run"


@pytest.fixture(scope="session")
def images():
    return data.binarize(data.load_mnist(DATA_DIR, "test")[0][:100], "dynamic")


@torch.no_grad()
def log_joint_on_a_grid(model: VAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Points z (G, L), 0.1 apart, for L of 1 or 2, and log p(x, z) of three images there (G, 3)."""
    z = torch.cartesian_prod(*[torch.linspace(-8, 8, 161)] * model.config.latent_dim)
    z = z.view(-1, model.config.latent_dim)
    logits = (model.decode(part)[:, None].expand(-1, 3, 1, 28, 28) for part in z.split(5000))
    nll = torch.cat([bernoulli_nll(part, x) for part in logits])
    return z, model.prior.log_prob(z)[:, None].double() - nll.double()
