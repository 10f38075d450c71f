"""A run survives kill -9, Ctrl-C, a full disk and divergence, and touches no other run."""

import random
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from conftest import TINY, Trainer, contents, read_rows, refusal

from checkpoint import load_checkpoint
from utils.files import new_folder

N_EPOCHS = 8
FLAGS = (*TINY, f"--binarize dynamic --deform 0.1 --n_epochs {N_EPOCHS} --save_dir run")
COMMAND = "stopped; resume with: python3 train.py "


def assert_same_run(folder: Path, expected: Path) -> None:
    """The same files, and in them bit for bit the same weights, metrics and pictures."""
    files = {path.relative_to(expected) for path in expected.rglob("*")}
    assert {path.relative_to(folder) for path in folder.rglob("*")} == files
    for name in ("best.pth", "last.pth"):
        assert contents(folder / name) == contents(expected / name)
    ours, theirs = (read_rows(path / "metrics.csv") for path in (folder, expected))
    assert [row | {"seconds": 0} for row in ours] == [row | {"seconds": 0} for row in theirs]
    for picture in (expected / "samples").iterdir():
        assert (folder / "samples" / picture.name).read_bytes() == picture.read_bytes()


def start_or_resume(folder: Path, flags: tuple = FLAGS) -> tuple:
    """The flags that start the run in `folder`/run, or resume it."""
    return ("--resume run/last.pth",) if (folder / "run" / "last.pth").exists() else flags


def epochs_in(path: Path) -> int:
    return len(load_checkpoint(path)[1]["metrics"])


@pytest.fixture(scope="module")
def uninterrupted(trainer: Trainer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert trainer(folder, *FLAGS).returncode == 0
    return folder / "run"


def test_eight_kills_at_random_moments_change_nothing(trainer, uninterrupted, tmp_path):
    moments, epochs = random.Random(0), []
    for _ in range(8):
        before = f"kill_at_call({moments.randrange(100_000)})"
        killed = trainer(tmp_path, *start_or_resume(tmp_path), before=before)
        assert killed.returncode in (0, -signal.SIGKILL), killed.stderr
        epochs += [epochs_in(path) for path in (tmp_path / "run").glob("*.pth")]
    assert len(set(epochs)) >= 4
    assert trainer(tmp_path, *start_or_resume(tmp_path)).returncode == 0
    assert_same_run(tmp_path / "run", uninterrupted)


def test_a_kill_before_any_write_changes_nothing(trainer, tiny_run, tmp_path):
    """Two epochs, killed before the first write, before the second, and so on."""
    flags = (*TINY, "--n_epochs 2 --save_dir run")
    n_writes = 2 * (1 + 4 + 4)  # a file is written, then renamed: last.pth, and four per epoch
    for n in range(1, n_writes + 2):
        folder = tmp_path / str(n)
        folder.mkdir()
        before = f"signal_at_write({n}, signal.SIGKILL)"
        killed = trainer(folder, *flags, before=before)
        assert killed.returncode == (-signal.SIGKILL if n <= n_writes else 0)
        assert (folder / "run" / "last.pth").exists() == (n > 2)  # before the first epoch
        assert trainer(folder, *start_or_resume(folder, flags)).returncode == 0
        assert_same_run(folder / "run", tiny_run)


@pytest.mark.parametrize(
    "moment",
    ["in_epoch_2(press_ctrl_c)", *(f"signal_at_write({n}, signal.SIGINT)" for n in (4, 15, 18))],
)
def test_ctrl_c_prints_the_command_that_resumes(trainer, uninterrupted, tmp_path, moment):
    stopped = trainer(tmp_path, *FLAGS, before=moment)
    assert (stopped.returncode, stopped.stderr) == (130, "")
    assert not list(tmp_path.rglob("*.tmp"))
    assert stopped.stdout.splitlines()[-1].startswith(COMMAND)
    assert trainer(tmp_path, *stopped.stdout.split(COMMAND)[1].split()).returncode == 0
    assert_same_run(tmp_path / "run", uninterrupted)


def test_ctrl_c_before_the_first_checkpoint_promises_nothing(trainer, tmp_path):
    stopped = trainer(tmp_path, *FLAGS, before="signal_at_write(1, signal.SIGINT)")
    assert (stopped.returncode, stopped.stderr) == (130, "")
    assert COMMAND not in stopped.stdout


@pytest.mark.parametrize("fault", ["fill_disk", "lose_folder"])
def test_a_write_that_fails_leaves_the_last_checkpoint(trainer, uninterrupted, tmp_path, fault):
    stopped = trainer(tmp_path, *FLAGS, before=f"in_epoch_2({fault})")
    assert "cannot be written" in refusal(stopped)
    if fault == "lose_folder":
        (tmp_path / "run").unlink()
        (tmp_path / "moved").rename(tmp_path / "run")
    assert epochs_in(tmp_path / "run" / "last.pth") == 1
    assert not list(tmp_path.rglob("*.tmp"))
    assert trainer(tmp_path, "--resume run/last.pth").returncode == 0
    assert_same_run(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--save_dir file", "cannot be written"),
        ("--save_dir file/run", "cannot be written"),
        ("--save_dir run --data_dir data", "train-images-idx3-ubyte.gz is damaged"),
        ("--data_dir data", "train-images-idx3-ubyte.gz is damaged"),
        ("--save_dir run --resume missing.pth", "missing.pth is not a file"),
        ("--save_dir run --init_from data", "data is not a file"),
    ],
)
def test_a_failed_start_is_one_sentence_and_leaves_no_folder(trainer, tmp_path, flags, reason):
    (tmp_path / "file").write_text("mine")
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for archive in ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"):
        (raw / archive).write_bytes(b"hello")
    assert reason in refusal(trainer(tmp_path, *TINY, flags))
    assert not [*tmp_path.glob("runs/*"), *tmp_path.glob("run")]
    assert (tmp_path / "file").read_text() == "mine"


def test_divergence_is_one_sentence(trainer, tmp_path):
    sentence = refusal(trainer(tmp_path, *FLAGS, "--lr 1e3"))
    assert "the loss is not finite in epoch 1;" in sentence
    assert "smaller --lr than 1000.0" in sentence


def test_broken_weights_do_not_reach_a_checkpoint(trainer, tmp_path):
    """The last step of an epoch may break the weights after its loss was finite."""
    stopped = trainer(tmp_path, *FLAGS, before="in_epoch_2(break_weights)")
    assert "not finite in epoch 2; the checkpoints of earlier epochs are intact" in refusal(stopped)
    for name in ("best.pth", "last.pth"):
        assert epochs_in(tmp_path / "run" / name) == 1
    assert len(read_rows(tmp_path / "run" / "metrics.csv")) == 1


@pytest.mark.parametrize(("weight", "collapses"), [("1e-6", True), ("1e5", False)])
def test_a_collapsed_posterior_is_announced(trainer, tmp_path, weight, collapses):
    flags = f"--n_epochs 10 --lr 0.05 --batch_size 16 --recon_weight {weight} --save_dir run"
    last = trainer(tmp_path, *TINY, flags).stdout.split("epoch 10/10")[1]
    assert ("posterior has collapsed" in last) == collapses


def test_a_new_run_does_not_touch_an_old_one(trainer, tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    before, after = (
        {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in tmp_path.rglob("run/*")}
        for refused in (None, refusal(trainer(tmp_path, *FLAGS)))
    )
    assert "holds a run" in refused
    assert after == before


def test_runs_without_save_dir_get_folders_of_their_own(trainer, tmp_path):
    for _ in range(2):
        assert trainer(tmp_path, *TINY, "--n_epochs 1").returncode == 0
    folders = sorted(path.parent.name for path in (tmp_path / "runs").glob("*/best.pth"))
    assert folders == ["MNIST_mlp_2d", "MNIST_mlp_2d_2"]


def test_folders_made_at_the_same_moment_differ(tmp_path):
    together = Barrier(8)

    def make(_: int) -> list[Path]:
        together.wait()
        return [new_folder(tmp_path / "runs" / "run") for _ in range(20)]

    with ThreadPoolExecutor(8) as pool:
        folders = sum(pool.map(make, range(8)), [])
    assert len(set(folders)) == 160
    assert {*folders} == {*(tmp_path / "runs").iterdir()}


def test_a_finished_run_resumes_to_its_last_lines(trainer, tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    done = trainer(tmp_path, "--resume run/last.pth")
    assert done.returncode == 0
    assert "best epoch 2: val recon_loss" in done.stdout
    assert done.stdout.endswith("next: python3 evaluate.py --model_params run/best.pth\n")
    assert "epoch 3" not in done.stdout
    assert_same_run(tmp_path / "run", tiny_run)
