"""A flag outside of its documented range is a usage error before any work; every value inside of it works."""

import importlib.util
import math
import re
import shutil
from argparse import Action, ArgumentParser
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, one_sentence, run_script

from checkpoint import load_checkpoint

SCRIPTS = [path for path in ("train.py", "evaluate.py", *ROOT.glob("vis/*/main.py")) if (ROOT / path).exists()]
NAMES = [str((ROOT / path).relative_to(ROOT)) for path in SCRIPTS]
NUMBERS = ("0", "-1", "-0.0", "1e30", str(10**30), "nan", "inf", "-inf", "", "x", "1,5", "0x10", "1e-400", "9" * 5000)


class ParserMade(Exception):
    """Carries a script's parser out of its main, which does nothing before it parses."""


@pytest.fixture
def parser(name: str, monkeypatch: pytest.MonkeyPatch) -> ArgumentParser:
    spec = importlib.util.spec_from_file_location("script_under_test", ROOT / name)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def stop(parser, *_, **__):
        raise ParserMade(parser)

    with monkeypatch.context() as patch:
        patch.setattr(ArgumentParser, "parse_args", stop)
        with pytest.raises(ParserMade) as caught:
            script.main()
    return caught.value.args[0]


def required(parser: ArgumentParser) -> list[str]:
    return [text for action in parser._actions if action.required for text in (action.option_strings[0], "file.pth")]


def numeric_actions(parser: ArgumentParser) -> list[Action]:
    """All flags that take neither a path nor a word from a list, so that a flag that is added later is tested too."""
    return [a for a in parser._actions if a.nargs != 0 and a.choices is None and a.type is not Path]


def refusal(parser: ArgumentParser, capsys: pytest.CaptureFixture, *flags: str) -> str:
    """The error line with which `parser` refuses `flags`."""
    with pytest.raises(SystemExit) as caught:
        parser.parse_args([*flags, *required(parser)])
    assert caught.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_in_their_documented_range_or_refused(parser, capsys):
    actions = numeric_actions(parser)
    assert actions
    for action in actions:
        flag = action.option_strings[0]
        documented = re.search(r"a (?:whole )?number from (\S+) to (\S+),", refusal(parser, capsys, flag, "x"))
        assert documented, f"{flag} does not say its range"
        low, high = map(float, documented.groups())
        for text in NUMBERS:
            try:
                value = getattr(parser.parse_args([*required(parser), f"{flag}={text}"]), action.dest)
            except SystemExit as end:
                message = capsys.readouterr().err.splitlines()[-1]
                refused = end.code == 2 and flag in message
                assert refused, message
            else:
                assert math.isfinite(value)
                assert low <= value <= high, (flag, text)
                assert type(value) in (int, float)


@pytest.mark.parametrize("name", NAMES)
def test_words_and_unknown_flags_are_refused(parser, capsys):
    for action in parser._actions:
        flag = action.option_strings[-1]
        if action.choices:
            assert flag in refusal(parser, capsys, flag, "neither")
        if len(flag) > 6 and not action.required:
            value = [] if action.nargs == 0 else [str(next(iter(action.choices or [action.default])))]
            assert "unrecognized" in refusal(parser, capsys, flag[:-1], *value)
    assert "unrecognized arguments: --unknown" in refusal(parser, capsys, "--unknown")
    assert "unrecognized arguments: word" in refusal(parser, capsys, "word")


def test_a_usage_error_comes_before_any_work(tmp_path):
    done = run_script("train.py", "--n_epochs", "0", "--save_dir", "run", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("--n_epochs: must be a whole number from 1 to 1000000, not '0'")
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "flags",
    [
        "--n_train 1",
        "--batch_size 1 --n_train 3",
        "--batch_size 8192 --n_train 9000",
        "--latent_dim 1024",
        "--latent_dim 1 --width 1 --n_blocks 1",
        "--n_blocks 64",
        "--arch conv --width 1 --n_blocks 64",
        "--recon_weight 1e-6",
        "--recon_weight 1e6",
        "--lr 1e-12",
        "--lr 1e3",
        "--lr 1e3 --prior flow",
        "--latent_dim 1024 --prior flow",
        "--n_iw_samples 100 --batch_size 2 --n_train 4",
        "--seed 0 --recon_loss mse",
        "--seed 2147483647 --binarize dynamic",
    ],
)
def test_the_ends_of_the_ranges_train_or_diverge_with_a_sentence(trainer, tmp_path, flags):
    done = trainer(tmp_path, *TINY, "--n_epochs", "2", "--save_dir", "run", *flags.split())
    if done.returncode == 0:
        assert (tmp_path / "run" / "best.pth").exists()
    else:
        assert done.returncode == 2
        assert "not finite" in one_sentence(done.stderr)


@pytest.mark.parametrize(
    ("flag", "given", "saved"),
    [
        ("latent_dim", "3", "2"),
        ("dataset", "KMNIST", "MNIST"),
        ("recon_loss", "mse", "bce"),
        ("binarize", "dynamic", "none"),
        ("arch", "conv", "mlp"),
        ("prior", "flow", "normal"),
        ("width", "32", "16"),
        ("lr", "0.5", "0.001"),
        ("seed", "1", "888"),
        ("n_iw_samples", "3", "1"),
        ("n_epochs", "1", "2"),
    ],
)
def test_resuming_with_another_flag_names_it_and_both_values(trainer, tiny_run, tmp_path, flag, given, saved):
    before = {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*")}
    refused = trainer(tmp_path, "--resume", tiny_run / "last.pth", f"--{flag}", given)
    assert refused.returncode == 2
    sentence = one_sentence(refused.stderr)
    for text in (f"--{flag}", given, saved):
        assert text in sentence
    assert {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*")} == before


def test_resuming_a_run_that_is_older_than_a_flag_takes_its_default(trainer, tiny_run, tmp_path):
    checkpoint = load_checkpoint(tiny_run / "last.pth")[1]
    del checkpoint["args"]["n_iw_samples"]
    torch.save(checkpoint, tmp_path / "last.pth")
    shutil.copy(tiny_run / "best.pth", tmp_path)
    refused = trainer(tmp_path, "--resume", "last.pth", "--n_iw_samples", "3")
    assert refused.returncode == 2
    assert "--n_iw_samples is 3 but the run to resume has 1" in one_sentence(refused.stderr)
    done = trainer(tmp_path, "--resume", "last.pth", "--n_epochs", "3")
    assert done.returncode == 0, done.stderr


def test_a_run_is_either_new_or_resumed(trainer, tiny_run, tmp_path):
    refused = trainer(tmp_path, "--resume", tiny_run / "last.pth", "--init_from", tiny_run / "best.pth")
    assert refused.returncode == 2
    assert "not allowed with" in refused.stderr


def test_resuming_takes_the_flags_of_the_run_and_more_epochs(trainer, tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    done = trainer(tmp_path, "--resume", "run/last.pth", "--n_epochs", "3", "--width", "16")
    assert done.returncode == 0
    assert "epoch 3/3" in done.stdout
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 4
