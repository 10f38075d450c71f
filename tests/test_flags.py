"""A flag outside of its documented range is refused before any work; every value inside works."""

import importlib
import math
import re
import shutil
from argparse import ArgumentParser
from pathlib import Path

from utils.cli import UserError
from utils.flags import Settings, make_parser, read_flags

import pytest
import torch
from conftest import ROOT, TINY, contents, read_rows, refusal, words

FIGURES = sorted(path.parent.name for path in ROOT.glob("vis/*/main.py"))
SCRIPTS = ["train", "evaluate", *(f"vis.{name}.main" for name in FIGURES)]
NUMBERS = ["0", "-1", "-0.0", "1e30", "nan", "inf", "-inf", "", "x", "1,5", "0x10", "1e-400"]
NUMBERS += [str(10**30), "9" * 5000]


class ParserMade(Exception):
    """Carries a script's parser out of its main, which does nothing before it parses."""


@pytest.fixture
def parser(name: str, monkeypatch: pytest.MonkeyPatch) -> ArgumentParser:
    """The parser of the script `name`, of which no flag is required any more."""

    def stop(parser, *_, **__):
        raise ParserMade(parser)

    with monkeypatch.context() as patch:
        patch.setattr(ArgumentParser, "parse_args", stop)
        with pytest.raises(ParserMade) as caught:
            importlib.import_module(name).main()
    for action in caught.value.args[0]._actions:
        action.required = False
    return caught.value.args[0]


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_a_parser_does_not_document_it_refuses(parser, capsys):
    def refusal(*flags: str) -> str:
        with pytest.raises(SystemExit) as caught:
            parser.parse_args(flags)
        assert caught.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert "unrecognized arguments: --unknown" in refusal("--unknown")
    assert "unrecognized arguments: word" in refusal("word")
    for action in parser._actions:
        flag = action.option_strings[-1]
        assert "unrecognized" in refusal(f"{flag[:-1]}=1")  # abbreviations
        if action.choices:
            assert flag in refusal(flag, "neither")
        elif action.nargs != 0 and action.type is not Path:  # a number
            message = refusal(flag, "x")
            documented = re.search(r"a (?:whole )?number from (\S+) to (\S+),", message)
            assert documented, f"{flag} does not say its range"
            low, high = map(float, documented.groups())
            for text in NUMBERS:
                try:
                    value = getattr(parser.parse_args([f"{flag}={text}"]), action.dest)
                    value = value[0] if action.nargs == "+" else value
                    assert type(value) in (int, float)
                    assert math.isfinite(value)
                    assert low <= value <= high, (flag, text)
                except SystemExit:
                    assert flag in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "flags",
    [
        "--n_train 1 --recon_weight 1e-6",
        "--batch_size 1 --n_train 3 --recon_weight 1e6",
        "--batch_size 8192 --n_train 9000 --lr 1e-12",
        "--latent_dim 1 --width 1 --n_blocks 1 --seed 0 --recon_loss mse",
        "--latent_dim 1024 --n_blocks 64 --seed 2147483647 --binarize dynamic",
        "--arch conv --width 1 --n_blocks 64",
        "--lr 1e3",
        "--lr 1e3 --prior flow --latent_dim 1024",
        "--n_importance_samples 10000 --batch_size 1 --n_train 1",
    ],
)
def test_the_ends_of_the_ranges_train_or_diverge_with_a_sentence(trainer, tmp_path, flags):
    done = trainer(tmp_path, *TINY, "--n_epochs 2 --save_dir run", flags)
    if done.returncode == 0:
        assert (tmp_path / "run" / "best.pth").exists()
    else:
        assert "not finite" in refusal(done)


@pytest.fixture
def read(monkeypatch):
    """What `read_flags` makes of these flags."""

    def read(*flags):
        monkeypatch.setattr("sys.argv", ["train.py", *words(flags)])
        return read_flags()

    return read


@pytest.mark.parametrize("start", ["--resume", "--init_from"])
def test_what_a_checkpoint_settles_is_refused_beside_it(read, tiny_run, start):
    settled = ["arch", "latent_dim", "width", "n_blocks", "prior"]
    if start == "--resume":
        free = {"help", "resume", "init_from", "n_epochs", "device", "data_dir"}
        settled = {action.dest for action in make_parser()._actions} - free
    for name in settled:
        value = {"width": 16, "save_dir": "other"}.get(name, make_parser().get_default(name))
        with pytest.raises(UserError, match=rf"^--{name} is settled by .*last.pth; leave it out"):
            read(start, tiny_run / "last.pth", f"--{name}={value}")


@pytest.mark.parametrize("flags", ["--arch conv --n_blocks 2", "--latent_dim 1 --prior flow"])
def test_a_model_that_cannot_be_is_one_sentence(read, flags):
    name, low = ("n_blocks", 3) if "conv" in flags else ("latent_dim", 2)
    with pytest.raises(UserError, match=rf"{name} must be a whole number from {low} to .*\.$"):
        read(flags)


def test_a_grid_is_of_two_dimensions_and_of_a_likelihood(read):
    with pytest.raises(UserError, match=r"^--n_grid needs --latent_dim 2, not 3; leave it out\.$"):
        read("--n_grid 8 --latent_dim 3")
    with pytest.raises(UserError, match=r"^--n_grid .* needs --recon_loss bce; leave one out\.$"):
        read("--n_grid 8 --recon_loss mse")


def test_a_run_is_either_new_or_resumed(read, capsys):
    with pytest.raises(SystemExit):
        read("--resume last.pth --init_from best.pth")
    assert "not allowed with" in capsys.readouterr().err


def test_a_run_older_than_a_setting_takes_its_default(read, tiny_run, tmp_path):
    shutil.copy(tiny_run / "best.pth", tmp_path)
    checkpoint = torch.load(tiny_run / "last.pth", weights_only=True)
    del checkpoint["args"]["n_importance_samples"]
    torch.save(checkpoint, tmp_path / "last.pth")
    _, config, settings, _ = read("--resume", tmp_path / "last.pth")
    assert settings == Settings(n_train=256, batch_size=128, n_epochs=2)
    assert (config.width, config.n_blocks) == (16, 1)


def test_more_epochs_say_what_they_do_to_the_learning_rate(trainer, tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    done = trainer(tmp_path, "--resume run/last.pth --n_epochs 3 --device cpu")
    assert done.returncode == 0, done.stderr
    lr = Settings.lr * (1 - 2 / 3) ** 2
    assert f"note: --n_epochs 3 takes the learning rate from 0 to {lr:.2g}\n" in done.stdout
    assert "epoch 3/3" in done.stdout
    assert len(read_rows(tmp_path / "run" / "metrics.csv")) == 3
    same = trainer(tmp_path, "--resume run/last.pth --n_epochs 3")
    assert same.returncode == 0
    assert "note" not in same.stdout
    assert '"n_epochs": 3' in contents(tmp_path / "run" / "last.pth")
    fewer = trainer(tmp_path, "--resume run/last.pth --n_epochs 2")
    assert "has 3 epochs already" in refusal(fewer)
