"""A run survives what happens to it: kill -9, Ctrl-C, a full disk, divergence, a second run."""

import random
import re
import shutil
import signal
import stat
from itertools import count
from pathlib import Path

from utils.checkpoint import load_checkpoint, locked_folder

import pytest
from conftest import ROOT, TINY, Trainer, contents, read_rows, refusal, run_script

N_EPOCHS = 20
FLAGS = (*TINY, f"--binarize dynamic --prior flow --n_epochs {N_EPOCHS} --save_dir run")


def assert_same_run(folder: Path, expected: Path) -> None:
    """Bit for bit the same weights, optimizer, metrics and pictures, and no file more."""
    files = {path.relative_to(expected) for path in expected.rglob("*")}
    assert {path.relative_to(folder) for path in folder.rglob("*")} == files
    for name in ("best.pth", "last.pth"):
        assert contents(folder / name) == contents(expected / name)
    ours, theirs = (read_rows(path / "metrics.csv") for path in (folder, expected))
    assert [row | {"seconds": 0} for row in ours] == [row | {"seconds": 0} for row in theirs]
    for picture in (expected / "samples").iterdir():
        assert (folder / "samples" / picture.name).read_bytes() == picture.read_bytes()


def state(folder: Path) -> dict[Path, tuple]:
    """Of every file and folder below, but for the locks: its size, last change and mode."""
    paths = [path for path in folder.rglob("*") if path.name != ".lock"]
    return {path: (s.st_size, s.st_mtime_ns, s.st_mode) for path in paths for s in [path.stat()]}


def go_on(folder: Path, flags: tuple = FLAGS) -> tuple:
    """The flags that start the run in `folder`/run, or go on with it."""
    return ("--resume run/last.pth",) if (folder / "run" / "last.pth").exists() else flags


@pytest.fixture(scope="module")
def uninterrupted(trainer: Trainer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert trainer(folder, *FLAGS).returncode == 0
    return folder / "run"


def test_twenty_kills_at_random_times_change_nothing(trainer, uninterrupted, tmp_path):
    start, end = ((uninterrupted / name).stat().st_mtime for name in (".lock", "metrics.csv"))
    two_epochs, moments, epochs_done = 2 * (end - start) / N_EPOCHS, random.Random(0), []
    for i in range(20):  # every other one in a run's first moments
        when = {"once": "epoch" if i % 2 else "", "after": moments.uniform(0, two_epochs)}
        killed = trainer(tmp_path, *go_on(tmp_path), **when)
        assert killed.returncode in (0, -signal.SIGKILL), killed.stderr
        for path in (tmp_path / "run").glob("*.pth"):
            epochs_done.append(len(load_checkpoint(path)[1]["metrics"]))
    assert len(set(epochs_done)) >= 5
    assert trainer(tmp_path, *go_on(tmp_path)).returncode == 0
    assert_same_run(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_stop_at_any_write_changes_nothing(trainer, tmp_path, number):
    """Two epochs, stopped before the first write, before the second, and so on."""
    two_epochs = (*TINY, "--n_epochs 2 --save_dir run")
    for n in count(0, 1 if number == signal.SIGKILL else 4):
        folder = tmp_path / str(n)
        folder.mkdir()
        stopped = trainer(folder, *two_epochs, before=f"signal_at_write({n}, {int(number)})")
        if number == signal.SIGINT:
            assert stopped.stderr == ""
            resumable = stopped.returncode == 130 and (folder / "run" / "last.pth").exists()
            assert ("--resume run/last.pth" in stopped.stdout) == resumable
            assert not list(folder.rglob("*.tmp"))
        done = trainer(folder, *go_on(folder, two_epochs))
        assert done.returncode == 0, (n, done.stderr)
        assert_same_run(folder / "run", tmp_path / "0" / "run")
        if n > 0 and stopped.returncode == 0:
            break
    assert n > 20


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_says_how_to_go_on(trainer, tmp_path, number, code):
    flags, n_rows = [*TINY, "--n_epochs 1000 --save_dir run"], 0
    for _ in range(2):
        once = f"epoch {n_rows + 2:4}/1000"
        stopped = trainer(tmp_path, *flags, signal_number=number, once=once)
        assert (stopped.returncode, stopped.stderr) == (code, "")
        flags = stopped.stdout.splitlines()[-1].split("stopped; go on with: python3 train.py ")[1:]
        rows = read_rows(tmp_path / "run" / "metrics.csv")
        assert [row["epoch"] for row in rows] == [str(i + 1) for i in range(len(rows))]
        assert len(rows) > n_rows
        n_rows = len(rows)


@pytest.mark.parametrize("script", ["train.py", "evaluate.py", "vis/samples/main.py"])
def test_ctrl_c_during_the_imports_leaves_no_traceback(tmp_path, script):
    stops = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    (tmp_path / "torch.py").write_text(stops)  # is found before PyTorch
    stopped = run_script(script, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert (stopped.returncode, stopped.stdout, stopped.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.parametrize("fault", ["fill_disk", "lose_folder"])
def test_a_write_that_fails_leaves_the_last_checkpoint(trainer, uninterrupted, tmp_path, fault):
    stopped = trainer(tmp_path, *FLAGS, before=f"after_epoch_2({fault})")
    assert "cannot be written" in refusal(stopped)
    if fault == "lose_folder":
        (tmp_path / "run").unlink()
        (tmp_path / "moved").rename(tmp_path / "run")
    assert len(load_checkpoint(tmp_path / "run" / "last.pth")[1]["metrics"]) == 1
    assert not list(tmp_path.rglob("*.tmp"))
    assert trainer(tmp_path, "--resume run/last.pth").returncode == 0
    assert_same_run(tmp_path / "run", uninterrupted)


def test_a_failed_start_is_one_sentence_and_leaves_no_folder(trainer, tmp_path):
    (tmp_path / "file").write_text("mine")
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for archive in ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"):
        (raw / archive).write_bytes(b"hello")
    for reason, flags in (
        ("cannot be written", "--save_dir file"),
        ("cannot be written", "--save_dir file/run"),
        ("cannot be written", f"--save_dir {'a' * 300}"),
        ("cannot be written", f"--save_dir {'a' * 300}/run"),
        ("File name too long", f"--data_dir {'a' * 300}"),
        ("train-images-idx3-ubyte.gz", "--data_dir data"),
        ("train-images-idx3-ubyte.gz", "--data_dir data --save_dir run"),
    ):
        assert reason in refusal(trainer(tmp_path, *TINY, flags))
    assert not [*tmp_path.glob("runs/*"), *tmp_path.glob("run"), *tmp_path.rglob(".lock")]
    assert (tmp_path / "file").read_text() == "mine"


def test_divergence_names_epoch_step_and_learning_rate(trainer, tmp_path):
    pattern = r"not finite at epoch \d+, (step \d+|validation) \(learning rate [\d.e+]+\)"
    assert re.search(pattern, refusal(trainer(tmp_path, *FLAGS, "--lr 1e3")))


def test_broken_weights_do_not_reach_the_checkpoint(trainer, tmp_path):
    """An epoch's last step may break the weights after its loss was looked at."""
    stopped = trainer(tmp_path, *FLAGS, before="after_epoch_2(break_weights)")
    assert "not finite at epoch 2, validation" in refusal(stopped)
    for name in ("best.pth", "last.pth"):
        assert len(load_checkpoint(tmp_path / "run" / name)[1]["metrics"]) == 1
    assert len(read_rows(tmp_path / "run" / "metrics.csv")) == 1


def test_a_collapsed_posterior_is_announced(trainer, tmp_path):
    for weight, says in (("1e-6", True), ("1e5", False)):
        flags = (
            f"--n_epochs 10 --lr 0.05 --batch_size 16 --recon_weight {weight} --save_dir {weight}"
        )
        last = trainer(tmp_path, *TINY, flags).stdout.split("epoch 10/10")[1]
        assert ("posterior has collapsed" in last) == says


def test_a_second_run_is_refused_while_the_first_holds_the_folder(trainer, tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    with locked_folder(tmp_path / "run"):
        before = state(tmp_path / "run")
        second = trainer(tmp_path, "--resume run/last.pth --n_epochs 3")
        assert "another run is writing to run" in refusal(second)
        assert state(tmp_path / "run") == before
    assert trainer(tmp_path, "--resume run/last.pth --n_epochs 3").returncode == 0


def test_a_new_run_does_not_touch_an_old_one(trainer, tiny_run, tmp_path):
    for name in ("last.pth", "best.pth", "metrics.csv"):
        folder = tmp_path / name.split(".")[0]
        folder.mkdir()
        shutil.copy(tiny_run / name, folder)
        before = state(folder)
        assert "holds a run" in refusal(trainer(tmp_path, *FLAGS, "--save_dir", folder))
        assert state(folder) == before


def test_runs_without_save_dir_get_folders_of_their_own(trainer, tmp_path):
    for _ in range(2):
        assert trainer(tmp_path, *TINY, "--n_epochs 1").returncode == 0
    folders = sorted(path.parent.name for path in (tmp_path / "runs").glob("*/best.pth"))
    assert folders == ["MNIST_mlp_2d", "MNIST_mlp_2d_2"]


def test_a_finished_run_resumes_to_its_last_lines(trainer, tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    done = trainer(tmp_path, "--resume run/last.pth")
    assert done.returncode == 0
    assert "best epoch 2" in done.stdout
    assert "epoch 3" not in done.stdout
    assert_same_run(tmp_path / "run", tiny_run)


@pytest.mark.parametrize(("name", "other"), [("best", "last"), ("last", "best")])
def test_resuming_needs_last_pth_and_best_pth_beside_it(trainer, tiny_run, tmp_path, name, other):
    shutil.copy(tiny_run / f"{name}.pth", tmp_path)
    refused = trainer(tmp_path, f"--resume {name}.pth --n_epochs 3")
    assert f"{other}.pth" in refusal(refused)
    assert "epoch" not in refused.stdout


def test_an_installation_that_cannot_be_written_suffices(tmp_path):
    """Training, evaluation and a figure from another folder: nothing in it changes."""
    code, data_dir, home = (tmp_path / name for name in ("code", "data", "home"))
    ignored = shutil.ignore_patterns(".*", "__pycache__", "runs", "figures", "datasets")
    shutil.copytree(ROOT, code, ignore=ignored)
    shutil.copytree(ROOT / "datasets", data_dir)
    home.mkdir()
    for path in (data_dir, *data_dir.rglob("*"), *code.rglob("*"), code):
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    before = state(code) | state(data_dir)
    of_run = "--model_params run/best.pth"
    for script, *flags in (
        ("train.py", *TINY, "--n_epochs 1 --save_dir run"),
        ("evaluate.py", of_run, "--n_images 10 --n_importance_samples 1"),
        ("vis/encoder_output/main.py", of_run, "--save_dir figures"),
    ):
        where = {"cwd": home, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": ""}
        done = run_script(code / script, *flags, "--data_dir", data_dir, **where)
        assert done.returncode == 0, done.stderr
    assert (home / "run" / "best.pth").exists()
    assert list((home / "figures").iterdir())
    assert state(code) | state(data_dir) == before
