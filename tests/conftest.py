"""What the tests share: running the scripts, a tiny trained run, and a trainer that forks instead of importing anew."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers on two cores, before torch is imported
import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
TINY = ("--n_train", "256", "--width", "16", "--n_blocks", "1", "--precision", "fp32", "--device", "cpu")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

# Imports train.py once. For each JSON line on its standard input it forks a child that is that run of train.py, sends it
# a signal if asked to, and answers with its exit code. The validation and test images are few, for speed.
TRAINER = """
import functools, json, os, sys, time, traceback
from pathlib import Path
import torch
import torch._dynamo  # which an optimizer imports
torch.set_num_threads(1)
import cli, data, train
data._read_idx = functools.cache(data._read_idx)
for split in data.SPLITS:
    data.load_mnist(data.DATA_DIR, split)
data.SPLITS |= {"val": ("train", slice(50_000, 50_500)), "test": ("t10k", slice(0, 500))}

def run(job):
    os.chdir(job["folder"])
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = ["train.py", *job["flags"]]
    try:
        exec(job["before"], {})
        cli.run(train.main)
        return 0
    except SystemExit as end:
        return end.code
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()

for line in sys.stdin:
    job = json.loads(line)
    start, output = None, Path(job["folder"], "stdout")
    output.write_text("")
    child = os.fork()
    if child == 0:
        os._exit(run(job))
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if start is None and job["once"] in output.read_text():
            start = time.monotonic()
        if start is not None and job["after"] is not None and time.monotonic() - start >= job["after"]:
            os.kill(child, job["signal"])
            job["after"] = None
        time.sleep(0.002)
    print(os.waitstatus_to_exitcode(ended[1]), flush=True)
"""


def run_script(*args: str | Path, cwd: Path, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess:
    """Runs `args[0]`, a script of this repository, in a process of its own whose working directory is `cwd`."""
    command = [sys.executable, str(ROOT / args[0]), *map(str, args[1:])]
    return subprocess.run(
        command, cwd=cwd, env=ENVIRONMENT | environment, capture_output=True, text=True, timeout=timeout, check=False
    )


def one_sentence(stderr: str) -> str:
    """The sentence of the one error line that `stderr` must be."""
    lines = stderr.splitlines()
    assert len(lines) == 1, stderr
    assert lines[0].startswith("error: "), stderr
    assert lines[0].endswith("."), stderr
    return lines[0]


def liven(prior: nn.Module) -> nn.Module:
    """Gives a flow random weights: a new one is the standard normal, whatever is wrong with it."""
    torch.manual_seed(7)
    for coupling in prior.couplings:
        *hidden, last = (layer for layer in coupling.net if isinstance(layer, nn.Linear))
        for layer in hidden:
            layer.reset_parameters()
        nn.init.normal_(last.weight, std=0.06)
        nn.init.normal_(last.bias, std=0.3)
    return prior


class Trainer:
    """Runs train.py in a folder, as often as one likes, without paying its imports each time."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", TRAINER], env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(
        self,
        folder: Path,
        *flags: str | Path,
        before: str = "",
        signal_number: int = signal.SIGKILL,
        after: float | None = None,
        once: str = "",
    ) -> subprocess.CompletedProcess:
        """Runs `train.py *flags` with `folder` as its working directory; `before` is code to run in its process first.

        The process gets `signal_number` so many seconds `after` its output holds the text `once`; with neither, it gets none.
        """
        job = {"folder": str(folder), "flags": list(map(str, flags)), "before": before}
        job |= {"signal": signal_number, "after": 0 if once and after is None else after, "once": once}
        print(json.dumps(job), file=self.process.stdin, flush=True)
        code = int(self.process.stdout.readline())
        return subprocess.CompletedProcess(flags, code, (folder / "stdout").read_text(), (folder / "stderr").read_text())


@pytest.fixture(scope="session")
def trainer() -> Iterator[Trainer]:
    trainer = Trainer()
    yield trainer
    trainer.process.stdin.close()
    trainer.process.wait()


@pytest.fixture(scope="session")
def tiny_run(trainer: Trainer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of two epochs: best.pth, last.pth, metrics.csv, samples. Not to be written to."""
    folder = tmp_path_factory.mktemp("tiny")
    done = trainer(folder, *TINY, "--n_epochs", "2", "--save_dir", "run")
    assert done.returncode == 0, done.stderr
    return folder / "run"
