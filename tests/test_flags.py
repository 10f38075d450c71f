"""What a user mistypes is one line that names the flag, and a checkpoint settles its flags."""

import importlib
import io
import re
import sys
from argparse import ArgumentParser
from pathlib import Path

import pytest
from conftest import ROOT, words

from train import make_parser, parse_flags
from utils import cli
from utils.cli import UserError

FIGURES = sorted(f"vis.{path.parent.name}.main" for path in ROOT.glob("vis/*/main.py"))


@pytest.mark.parametrize("script", ["train", "evaluate", *FIGURES])
def test_a_mistyped_flag_is_one_line_that_names_it(script, monkeypatch, capsys):
    made = []  # by the script's main, which does nothing before it parses
    monkeypatch.setattr(ArgumentParser, "parse_args", lambda *given: sys.exit(made.append(given)))
    with pytest.raises(SystemExit):
        importlib.import_module(script).main()
    monkeypatch.undo()
    parser = made[0][0]

    def refusal(*flags: str) -> str:
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args(flags)
        return capsys.readouterr().err.splitlines()[-1]

    for action in parser._actions:
        action.required = False
    assert "unrecognized arguments: --unknown" in refusal("--unknown")
    for action in parser._actions:
        flag = action.option_strings[-1]
        assert "unrecognized" in refusal(f"{flag[:-1]}=1")  # an abbreviation
        if action.choices:
            assert f"argument {flag}: invalid choice: 'neither'" in refusal(flag, "neither")
        elif action.nargs != 0 and action.type is not Path:
            for text in ("x", "nan", "-999"):  # the last is outside of every range
                message = refusal(f"{flag}={text}")
                assert re.search(f"argument {flag}: must be a.* number .*, not '{text}'$", message)


def test_paths_expand_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    parser = cli.parser("")
    parser.add_argument("--image", type=Path, nargs="+")
    for given, value in (("~/run", "/home/ada/run"), ("a/~b", "a/~b"), ("~no one/x", "~no one/x")):
        assert parser.parse_args([f"--image={given}"]).image == [Path(value)]


def test_letters_that_the_terminal_cannot_print_end_no_script(monkeypatch):
    def main() -> None:
        print("λ/best.pth")
        raise UserError("λ is missing.")

    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding="cp1252"))
    with pytest.raises(SystemExit, match="2"):
        cli.run(main)
    sys.stderr.flush()
    sys.stdout.flush()
    assert sys.stdout.buffer.getvalue() == rb"\u03bb/best.pth" + b"\n"
    assert sys.stderr.buffer.getvalue() == rb"error: \u03bb is missing." + b"\n"


def test_a_notebook_may_own_the_streams(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    cli.run(lambda: print("λ"))
    assert sys.stdout.getvalue() == "λ\n"


@pytest.mark.parametrize("start", ["--resume", "--init_from"])
def test_a_checkpoint_settles_its_flags(tiny_run, start):
    settled = {"arch", "latent_dim", "width", "n_blocks", "prior"}
    free = {"help", "resume", "init_from", "n_epochs", "device", "data_dir"}
    if start == "--resume":
        settled = {action.dest for action in make_parser()._actions} - free
    others = {"arch": "conv", "prior": "flow", "recon_loss": "mse", "binarize": "dynamic"}
    others |= {"dataset": "KMNIST", "precision": "bf16", "save_dir": "other"}
    path = tiny_run / "last.pth"
    for name in settled:
        with pytest.raises(UserError, match=f"^--{name} is fixed by {path}; leave it out.$"):
            parse_flags([start, str(path), f"--{name}", others.get(name, "7")])
    args = parse_flags([start, str(path), *words(("--n_epochs 7 --device cpu --data_dir x",))])
    assert (args.n_epochs, args.device.type, args.data_dir) == (7, "cpu", Path("x"))
    assert (args.width, args.save_dir) == (16, tiny_run if start == "--resume" else None)
