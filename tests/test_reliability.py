"""A run survives what happens to it: kill -9, Ctrl-C, a full disk, divergence, a second run, a read-only installation."""

import csv
import json
import random
import re
import shutil
import signal
import stat
from itertools import count
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, Trainer, one_sentence, run_script

from checkpoint import load_checkpoint, locked_folder

N_EPOCHS = 30
FLAGS = (*TINY, "--n_epochs", N_EPOCHS)
# Raises a signal in the run itself, just before the n-th time that it opens a file to write, or moves or removes one.
SIGNAL_AT = """
import os, sys
n_left = {n}
def hook(event, args):
    global n_left
    if event in ("os.rename", "os.remove", "os.mkdir") or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR)):
        n_left -= 1
        if n_left == 0:
            os.kill(os.getpid(), {signal})
sys.addaudithook(hook)
"""
# Runs some code when the second epoch has been trained.
IN_EPOCH_2 = """
import train
train_one_epoch = train.train_one_epoch
def wrapped(*args):
    result = train_one_epoch(*args)
    if args[-1] == 2:
        {code}
    return result
train.train_one_epoch = wrapped
"""


def rows(path: Path) -> list[dict]:
    with open(path, newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def contents(path: Path) -> str:
    """All that a checkpoint holds, apart from the seconds that it took."""
    checkpoint = torch.load(path, weights_only=True)
    for row in checkpoint["metrics"]:
        del row["seconds"]
    return json.dumps(checkpoint, default=torch.Tensor.tolist)


def assert_same_run(folder: Path, expected: Path) -> None:
    """Bit for bit the same weights, optimizer, metrics and pictures, and no file more."""
    files = {path.relative_to(expected) for path in expected.rglob("*")}
    assert {path.relative_to(folder) for path in folder.rglob("*")} == files
    for name in ("best.pth", "last.pth"):
        assert contents(folder / name) == contents(expected / name)
    assert rows(folder / "metrics.csv") == rows(expected / "metrics.csv")
    for picture in (expected / "samples").iterdir():
        assert (folder / "samples" / picture.name).read_bytes() == picture.read_bytes()


def go_on(folder: Path) -> tuple:
    """The flags that start the run in `folder`/run, or go on with it."""
    return ("--resume", "run/last.pth") if (folder / "run" / "last.pth").exists() else (*FLAGS, "--save_dir", "run")


@pytest.fixture(scope="module")
def uninterrupted(trainer: Trainer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert trainer(folder, *FLAGS, "--save_dir", "run").returncode == 0
    return folder / "run"


def test_twenty_kills_at_random_times_change_nothing(trainer, uninterrupted, tmp_path):
    run_seconds = (uninterrupted / "metrics.csv").stat().st_mtime - (uninterrupted / ".lock").stat().st_mtime
    two_epochs, moments, epochs_done = 2 * run_seconds / N_EPOCHS, random.Random(0), []
    for i in range(20):  # every other one in a run's first moments
        once = "epoch" if i % 2 else ""
        killed = trainer(tmp_path, *go_on(tmp_path), once=once, after=moments.uniform(0, two_epochs))
        assert killed.returncode in (0, -signal.SIGKILL), killed.stderr
        for path in (tmp_path / "run").glob("*.pth"):
            epochs_done.append(len(load_checkpoint(path)[1]["metrics"]))
    assert len(set(epochs_done)) >= 5
    assert trainer(tmp_path, *go_on(tmp_path)).returncode == 0
    assert_same_run(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_stop_at_any_write_changes_nothing(trainer, tmp_path, number):
    """Two epochs, stopped before the first write, before the second, and so on, each time in a new folder."""
    two_epochs = (*TINY, "--n_epochs", "2", "--save_dir", "run")
    for n in count(0, 1 if number == signal.SIGKILL else 4):
        folder = tmp_path / str(n)
        folder.mkdir()
        stopped = trainer(folder, *two_epochs, before=SIGNAL_AT.format(n=n, signal=int(number)))
        saved = (folder / "run" / "last.pth").exists()
        if number == signal.SIGINT:
            assert stopped.stderr == ""
            assert ("--resume run/last.pth" in stopped.stdout) == (stopped.returncode == 130 and saved)
            assert not list(folder.rglob("*.tmp"))
        flags = ("--resume", "run/last.pth") if saved else two_epochs
        done = trainer(folder, *flags)
        assert done.returncode == 0, (n, done.stderr)
        assert_same_run(folder / "run", tmp_path / "0" / "run")
        if n > 0 and stopped.returncode == 0:
            break
    assert n > 20


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_says_how_to_go_on(trainer, tmp_path, number, code):
    flags = (*TINY, "--n_epochs", "1000", "--save_dir", "run")
    stopped = trainer(tmp_path, *flags, signal_number=number, once="epoch    2/1000")
    assert (stopped.returncode, stopped.stderr) == (code, "")
    command = re.fullmatch(r"stopped; go on with: python3 train.py (--resume \S+)", stopped.stdout.splitlines()[-1])
    n_rows = len(rows(tmp_path / "run" / "metrics.csv"))
    again = trainer(tmp_path, *command[1].split(), signal_number=number, once=f"epoch {n_rows + 2:4}/1000")
    assert again.returncode == code
    epochs = [int(row["epoch"]) for row in rows(tmp_path / "run" / "metrics.csv")]
    assert epochs == list(range(1, len(epochs) + 1))
    assert len(epochs) > n_rows


FAULTS = {
    "full disk": "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))",
    "lost folder": "import os; os.rename('run', 'moved'); open('run', 'w').close()",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_write_that_fails_leaves_the_last_checkpoint(trainer, uninterrupted, tmp_path, fault):
    stopped = trainer(tmp_path, *FLAGS, "--save_dir", "run", before=IN_EPOCH_2.format(code=FAULTS[fault]))
    assert stopped.returncode == 2
    assert "run" in one_sentence(stopped.stderr)
    assert "cannot be written" in stopped.stderr
    if fault == "lost folder":
        (tmp_path / "run").unlink()
        (tmp_path / "moved").rename(tmp_path / "run")
    assert len(load_checkpoint(tmp_path / "run" / "last.pth")[1]["metrics"]) == 1
    assert not list(tmp_path.rglob("*.tmp"))
    assert trainer(tmp_path, "--resume", "run/last.pth").returncode == 0
    assert_same_run(tmp_path / "run", uninterrupted)


def test_a_folder_that_cannot_be_made_is_one_sentence(trainer, tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in ("file", "file/run"):
        refused = trainer(tmp_path, *FLAGS, "--save_dir", folder)
        assert refused.returncode == 2
        assert "cannot be written" in one_sentence(refused.stderr)
    assert (tmp_path / "file").read_text() == "mine"


def test_divergence_names_epoch_step_and_learning_rate(trainer, tmp_path):
    stopped = trainer(tmp_path, *FLAGS, "--lr", "1e3", "--save_dir", "run")
    assert stopped.returncode == 2
    assert re.search(r"not finite at epoch \d+, (step \d+|validation) \(learning rate [\d.e+]+\)", one_sentence(stopped.stderr))


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_broken_weights_do_not_reach_the_checkpoint(trainer, tmp_path, value):
    """An epoch's last step may break the weights after its loss was looked at."""
    breaks = IN_EPOCH_2.format(code=f"next(args[0].parameters()).data.fill_(float('{value}'))")
    stopped = trainer(tmp_path, *FLAGS, "--save_dir", "run", before=breaks)
    assert stopped.returncode == 2
    assert "not finite at epoch 2, validation" in one_sentence(stopped.stderr)
    for name in ("best.pth", "last.pth"):
        assert len(load_checkpoint(tmp_path / "run" / name)[1]["metrics"]) == 1
    assert len(rows(tmp_path / "run" / "metrics.csv")) == 1


def test_a_collapsed_posterior_is_announced(trainer, tmp_path):
    flags = (*TINY, "--n_epochs", "10", "--lr", "0.05", "--save_dir")
    last = {}
    for weight in ("1e-6", "1e5"):
        last[weight] = trainer(tmp_path, *flags, weight, "--recon_weight", weight).stdout.split("epoch 10/10")[1]
    assert "posterior has collapsed" in last["1e-6"]
    assert "collapsed" not in last["1e5"]


def state(folder: Path) -> dict[Path, tuple]:
    """Of every file and folder below `folder`, but for the locks: its size, its last change, its mode."""
    paths = [path for path in folder.rglob("*") if path.name != ".lock"]
    return {path: (s.st_size, s.st_mtime_ns, s.st_mode) for path in paths for s in [path.stat()]}


def test_a_second_run_is_refused_while_the_first_holds_the_folder(trainer, tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    with locked_folder(tmp_path / "run"):
        before = state(tmp_path / "run")
        second = trainer(tmp_path, "--resume", "run/last.pth", "--n_epochs", "3")
        assert second.returncode == 2
        assert "another run is writing to run" in one_sentence(second.stderr)
        assert state(tmp_path / "run") == before
    assert trainer(tmp_path, "--resume", "run/last.pth", "--n_epochs", "3").returncode == 0


@pytest.mark.parametrize("kept", ["last.pth", "best.pth", "metrics.csv"])
def test_a_new_run_does_not_touch_an_old_one(trainer, tiny_run, tmp_path, kept):
    (tmp_path / "run").mkdir()
    shutil.copy(tiny_run / kept, tmp_path / "run")
    before = state(tmp_path / "run")
    refused = trainer(tmp_path, *FLAGS, "--save_dir", "run")
    assert refused.returncode == 2
    assert "run holds a run already" in one_sentence(refused.stderr)
    assert state(tmp_path / "run") == before


def test_runs_without_save_dir_get_folders_of_their_own(trainer, tmp_path):
    for name in ("MNIST_mlp_2d", "MNIST_mlp_2d_2"):
        assert trainer(tmp_path, *TINY, "--n_epochs", "1").returncode == 0
        assert (tmp_path / "runs" / name / "best.pth").exists()
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_a_resumed_run_cannot_overwrite_another_one(trainer, tiny_run, tmp_path):
    for name in ("one", "other"):
        shutil.copytree(tiny_run, tmp_path / name)
    before = state(tmp_path / "other")
    refused = trainer(tmp_path, "--resume", "one/last.pth", "--save_dir", "other", "--n_epochs", "3")
    assert refused.returncode == 2
    one_sentence(refused.stderr)
    assert state(tmp_path / "other") == before


def test_resuming_needs_the_best_checkpoint_from_the_start(trainer, tiny_run, tmp_path):
    (tmp_path / "run").mkdir()
    shutil.copy(tiny_run / "last.pth", tmp_path / "run")
    refused = trainer(tmp_path, "--resume", "run/last.pth", "--n_epochs", "3")
    assert refused.returncode == 2
    assert "best.pth" in one_sentence(refused.stderr)
    assert "epoch" not in refused.stdout


def test_a_finished_run_resumes_to_its_test_figures(trainer, tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    done = trainer(tmp_path, "--resume", "run/last.pth")
    assert done.returncode == 0
    assert "test, " in done.stdout
    assert "epoch 3" not in done.stdout
    assert_same_run(tmp_path / "run", tiny_run)


def test_best_pth_is_no_place_to_go_on_from(trainer, tiny_run, tmp_path):
    before = state(tiny_run)
    refused = trainer(tmp_path, "--resume", tiny_run / "best.pth")
    assert refused.returncode == 2
    assert "last.pth" in one_sentence(refused.stderr)
    assert state(tiny_run) == before


def test_an_installation_that_cannot_be_written_suffices(tmp_path):
    """From a working directory elsewhere, train, evaluate and draw a figure: nothing in the installation changes."""
    code = tmp_path / "code"
    shutil.copytree(ROOT, code, ignore=shutil.ignore_patterns(".*", "__pycache__", "runs", "figures", "datasets"))
    shutil.copytree(ROOT / "datasets", tmp_path / "data")
    for path in (tmp_path / "data", *(tmp_path / "data").rglob("*"), *code.rglob("*"), code):
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    home = tmp_path / "home"
    home.mkdir()
    before = state(code) | state(tmp_path / "data")
    for script, *flags in (
        ("train.py", *TINY, "--n_epochs", "1", "--save_dir", "run"),
        ("evaluate.py", "--model_params", "run/best.pth", "--n_images", "10", "--n_importance_samples", "1"),
        ("vis/encoder_output/main.py", "--model_params", "run/best.pth", "--save_dir", "figures"),
    ):
        done = run_script(code / script, *flags, "--data_dir", tmp_path / "data", cwd=home, PYTHONDONTWRITEBYTECODE="1")
        assert done.returncode == 0, done.stderr
    assert (home / "run" / "best.pth").exists()
    assert list((home / "figures").iterdir())
    assert state(code) | state(tmp_path / "data") == before
