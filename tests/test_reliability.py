"""A run survives kill -9, Ctrl-C, a full disk and divergence, and touches no other run."""

import math
import os
import random
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path
from resource import RLIMIT_FSIZE, setrlimit
from signal import SIGINT, SIGKILL
from unittest.mock import Mock

import pytest
import torch
from conftest import TINY, contents, read_rows, refusal

import train
from checkpoint import load_checkpoint
from model import VAE
from utils.files import new_folder, write_file

FLAGS = (*TINY, "--binarize dynamic --deform 0.1 --n_epochs 10 --save_dir run")


def signal_at_call(n: int, number: int) -> Callable[..., None]:
    """A function whose n-th call sends the process a signal."""
    calls = count(1)
    return lambda *_: os.kill(os.getpid(), number) if next(calls) == n else None


def signal_in_training(n: int, number: int) -> None:
    """Sends a signal when training calls or leaves a function for the n-th time."""
    call, run_epoch = signal_at_call(n, number), train.run_epoch
    train.run_epoch = lambda *given: (sys.setprofile(call), run_epoch(*given))


def signal_at_write(n: int, number: int) -> None:
    """Sends a signal just before the n-th write: a file is created or renamed."""
    call = signal_at_call(n, number)

    def hook(event: str, args: tuple) -> None:
        if event == "os.rename" or (event == "open" and args[2] & os.O_CREAT):
            call()

    sys.addaudithook(hook)


def in_epoch_2(fault: Callable[[VAE], None]) -> None:
    """Calls `fault` after the last step of the second epoch, before its validation."""
    train_one_epoch = train.train_one_epoch

    def wrapped(model, *given):
        yield from train_one_epoch(model, *given)
        if given[-1] == 2:
            fault(model)

    train.train_one_epoch = wrapped


FAULTS = {
    "cannot be written (File too large); choose": lambda _: setrlimit(RLIMIT_FSIZE, (1000, -1)),
    "not finite in epoch 2; start": lambda model: model.output_bias.data.fill_(math.nan),
}


def assert_same_run(folder: Path, expected: Path) -> None:
    """The same files, and in them bit for bit the same weights, metrics and pictures."""
    files = {path.relative_to(expected) for path in expected.rglob("*")}
    assert {path.relative_to(folder) for path in folder.rglob("*")} == files
    for name in ("best.pth", "last.pth"):
        assert contents(folder / name) == contents(expected / name)
    ours, theirs = (read_rows(path / "metrics.csv") for path in (folder, expected))
    assert [row | {"seconds": 0} for row in ours] == [row | {"seconds": 0} for row in theirs]
    for name in (name for name in files if name.suffix == ".png"):
        assert (folder / name).read_bytes() == (expected / name).read_bytes()


def start_or_resume(folder: Path, flags: tuple = FLAGS) -> tuple:
    """The flags that start the run in `folder`/run, or resume it."""
    return ("--resume run/last.pth",) if (folder / "run" / "last.pth").exists() else flags


def epochs_in(path: Path) -> int:
    return len(load_checkpoint(path)[1]["metrics"])


@pytest.fixture(scope="module")
def uninterrupted(trainer: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert trainer(folder, *FLAGS).returncode == 0
    return folder / "run"


def test_eight_kills_at_random_moments_change_nothing(trainer, uninterrupted, tmp_path):
    moments, epochs = random.Random(0), []
    for _ in range(8):
        before = partial(signal_in_training, moments.randrange(70_000), SIGKILL)  # two epochs
        killed = trainer(tmp_path, *start_or_resume(tmp_path), before=before)
        assert killed.returncode in (0, -SIGKILL), killed.stderr
        epochs += [epochs_in(path) for path in (tmp_path / "run").glob("*.pth")]
    assert len(set(epochs)) >= 4
    assert trainer(tmp_path, *start_or_resume(tmp_path)).returncode == 0
    assert_same_run(tmp_path / "run", uninterrupted)


def test_a_kill_before_any_write_changes_nothing(trainer, tiny_run, tmp_path):
    """Two epochs, killed before the first write, before the second, and so on."""
    flags = (*TINY, "--n_epochs 2 --save_dir run")
    n_writes = 2 * (1 + 4 + 4)  # each file is opened and renamed: last.pth, then four per epoch
    for n in range(1, n_writes + 2):
        folder = tmp_path / str(n)
        folder.mkdir()
        killed = trainer(folder, *flags, before=partial(signal_at_write, n, SIGKILL))
        assert killed.returncode == (-SIGKILL if n <= n_writes else 0)
        assert (folder / "run" / "last.pth").exists() == (n > 2)  # before the first epoch
        assert trainer(folder, *start_or_resume(folder, flags)).returncode == 0
        assert_same_run(folder / "run", tiny_run)


def test_a_kill_between_two_writes_of_last_pth_changes_nothing(trainer, uninterrupted, tmp_path):
    def before() -> None:
        train.SAVE_SECONDS = 1000
        signal_at_write(2 + 3 * 6 + 1, SIGKILL)  # last.pth, then three files in each of 3 epochs

    assert trainer(tmp_path, *FLAGS, before=before).returncode == -SIGKILL
    assert epochs_in(tmp_path / "run" / "last.pth") == 0
    assert len(read_rows(tmp_path / "run" / "metrics.csv")) == 3
    assert trainer(tmp_path, "--resume run/last.pth").returncode == 0
    assert_same_run(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize(
    ("when", "n"), [(signal_in_training, 3_000), *((signal_at_write, n) for n in (4, 15, 18))]
)
def test_ctrl_c_prints_the_command_that_resumes(trainer, uninterrupted, tmp_path, when, n):
    stopped = trainer(tmp_path, *FLAGS, before=partial(when, n, SIGINT))
    assert (stopped.returncode, stopped.stderr) == (130, "")
    assert not list(tmp_path.rglob("*.tmp"))
    command = stopped.stdout.split("\nstopped; resume with: python3 train.py ")[1]
    assert trainer(tmp_path, command).returncode == 0
    assert_same_run(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize(("reason", "fault"), FAULTS.items())
def test_a_failed_epoch_leaves_the_one_before(trainer, uninterrupted, tmp_path, reason, fault):
    assert reason in refusal(trainer(tmp_path, *FLAGS, before=lambda: in_epoch_2(fault)))
    assert [epochs_in(path) for path in (tmp_path / "run").glob("*.pth")] == [1, 1]
    assert not list(tmp_path.rglob("*.tmp"))
    assert trainer(tmp_path, "--resume run/last.pth").returncode == 0
    assert_same_run(tmp_path / "run", uninterrupted)


def test_a_metrics_csv_that_cannot_be_written_is_a_warning(trainer, uninterrupted, tmp_path):
    """As on Windows while a spreadsheet has it open; here a folder holds its place."""
    (tmp_path / "run" / "metrics.csv").mkdir(parents=True)
    run = trainer(tmp_path, *FLAGS)
    assert (run.returncode, run.stdout.count("warning: metrics.csv cannot be written; ")) == (0, 10)
    assert contents(tmp_path / "run" / "last.pth") == contents(uninterrupted / "last.pth")


def test_without_memory_the_sentence_says_what_helps_and_the_folder_is_free(trainer, tmp_path):
    before = partial(setattr, train, "bernoulli_nll", lambda *_: torch.empty(10**15))
    sentence = refusal(trainer(tmp_path, *TINY, "--save_dir run", before=before))
    assert sentence == "error: out of memory; use a smaller --batch_size."
    assert trainer(tmp_path, *TINY, "--n_epochs 1 --save_dir run").returncode == 0


@pytest.mark.parametrize("flags", ["--save_dir file", "--save_dir file/run", "--init_from file"])
def test_a_failed_start_is_one_sentence_and_harms_nothing(trainer, tmp_path, flags):
    (tmp_path / "file").write_text("mine")
    assert flags.split()[1] in refusal(trainer(tmp_path, *TINY, flags))
    assert (tmp_path / "file").read_text() == "mine"
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("weight", "collapses"), [("1e-6", True), ("1e5", False)])
def test_a_collapsed_posterior_is_announced(trainer, tmp_path, weight, collapses):
    flags = f"--n_epochs 10 --lr 0.05 --batch_size 16 --recon_weight {weight} --save_dir run"
    last = trainer(tmp_path, *TINY, flags).stdout.split("epoch 10/10")[1]
    assert ("posterior has collapsed" in last) == collapses


def test_a_new_run_does_not_touch_an_old_one(trainer, tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert "holds a run" in refusal(trainer(tmp_path, *FLAGS))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_folders_made_at_the_same_moment_differ(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = {*pool.map(new_folder, [tmp_path / "runs" / "run"] * 160)}
    assert len(folders) == 160
    assert folders == {*(tmp_path / "runs").iterdir()}


def test_ctrl_c_inside_torch_save_stays_ctrl_c(tmp_path):
    disk = Mock(**{"write.side_effect": [64, *[KeyboardInterrupt] * 4]})
    with pytest.raises(KeyboardInterrupt):  # torch.save raises a RuntimeError of its own over it
        write_file(tmp_path / "x", lambda _: torch.save(torch.ones(9), disk))


def test_a_finished_run_resumes_to_its_last_lines_or_to_more_epochs(trainer, tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    done = trainer(tmp_path, "--resume run/last.pth")
    assert done.returncode == 0
    _, best, following = done.stdout.splitlines()
    assert best.startswith("best epoch 2: val recon_loss")
    assert following == "next: python3 evaluate.py --model_params run/best.pth"
    assert_same_run(tmp_path / "run", tiny_run)
    best = trainer(tmp_path, "--resume run/best.pth")
    assert "best.pth cannot be resumed; give the run's last.pth." in refusal(best)
    more = trainer(tmp_path, "--resume run/last.pth --n_epochs 3 --device cpu")
    assert [line[:9] for line in more.stdout.splitlines()[1:3]] == ["epoch 3/3", "best epoc"]
    assert epochs_in(tmp_path / "run" / "last.pth") == 3
