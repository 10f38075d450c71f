"""The README's commands: each is parsed by the parser of the script it names, and the quick ones are run."""

import argparse
import re
import runpy
import shlex
import subprocess
import sys

import pytest
from conftest import ENVIRONMENT, ROOT, run_script
from PIL import Image

import train

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines()] + re.findall(r"`(python3 [^`]+)`", README)
COMMANDS = sorted({part.strip() for line in LINES for part in line.split("&&")})
SCRIPTS = [command for command in COMMANDS if re.match(r"(python3|torchrun \S+) [\w/]+\.py", command)]
QUICK = [command for command in SCRIPTS if command.startswith("python3 vis/") and "all.py" not in command]


class ParsedError(Exception):
    """Ends a script as soon as its own parser has accepted its flags."""


def absolute(command: str) -> list[str]:
    """The words of a command, with paths into the repository that hold from any folder."""
    return [str(ROOT / word) if word.startswith("pretrained/") else word for word in shlex.split(command)]


def test_the_readme_has_the_commands_that_this_file_believes_in():
    assert len(SCRIPTS) >= 15
    assert len(QUICK) >= 9
    others = [command for command in COMMANDS if command not in SCRIPTS]
    assert others == ["pip install -r requirements-dev.txt", "pip install -r requirements.txt", "python3 -m pytest -q"]


@pytest.mark.parametrize("command", SCRIPTS)
def test_every_command_is_parsed_by_its_own_script(command, monkeypatch):
    words = shlex.split(command)
    script = next(i for i, word in enumerate(words) if word.endswith(".py"))
    parse_args = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, *args, **kwargs):
        parse_args(self, *args, **kwargs)
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.setattr(sys, "argv", words[script:])
    with pytest.raises(ParsedError):
        runpy.run_path(str(ROOT / words[script]), run_name="__main__")


@pytest.mark.parametrize("command", QUICK)
def test_every_figure_is_drawn_from_another_folder(command, tmp_path):
    Image.open(ROOT / "pretrained" / "figures" / "samples.png").crop((180, 180, 300, 300)).save(tmp_path / "my_digit.png")
    _, script, *flags = absolute(command)
    done = run_script(script, *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    figure = tmp_path / done.stdout.splitlines()[0]
    assert figure.stat().st_size > 5_000
    assert figure.parent == tmp_path / "figures"


def test_the_python_example_writes_a_reconstruction(tmp_path):
    Image.open(ROOT / "pretrained" / "figures" / "samples.png").crop((180, 180, 300, 300)).save(tmp_path / "my_digit.png")
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    code = code.replace('load("."', f'load("{ROOT}"')
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "my_reconstruction.png").size == (28, 28)


def test_evaluate_prints_the_readmes_figures(tmp_path):
    """All of the command's figures but the slow NLL, as far as bf16 and float32 agree."""
    flags = ("--model_params", ROOT / "pretrained" / "vae_mnist.pth", "--n_importance_samples", "1")
    done = run_script("evaluate.py", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for label in ("recon", "kl", "-ELBO", "active units", "KL per dimension", "k-NN accuracy"):
        printed, shown = (
            [float(figure) for figure in re.findall(r"\d+\.?\d*", re.search(rf"^  {label} (.*)", text, re.MULTILINE)[1])]
            for text in (done.stdout, README)
        )
        assert printed == pytest.approx(shown, abs=0.003 if label == "k-NN accuracy" else 0.02), label


def test_the_table_of_flags_is_that_of_the_parser():
    table = dict(re.findall(r"\| `--(\w+)` \| (.*?) \|", README))
    actions = {action.dest: action.default for action in train.make_parser()._actions if action.dest != "help"}
    assert table.keys() == actions.keys()
    for name, default in actions.items():
        if default is not None and name not in ("data_dir", "compile"):
            assert table[name] == str(default)


def test_every_link_and_picture_is_there():
    for page in (ROOT / "README.md", ROOT / "benchmarks" / "README.md", *ROOT.glob("papers/*/README.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page}: {target}"
