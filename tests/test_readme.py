"""The pages' commands, Python, metrics and links: they say what the repository does."""

import argparse
import hashlib
import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_script
from PIL import Image

import evaluate
import train
from data import SPLITS, load_mnist

README = (ROOT / "README.md").read_text()
PATTERNS = ("README.md", "docs/*.md", "pretrained/README.md", "papers/*/*.md")
PAGES = {page: page.read_text() for pattern in PATTERNS for page in ROOT.glob(pattern)}


def commands(text: str) -> set[str]:
    """The commands of a page: its bash blocks, and `python3 ...` inside its lines."""
    blocks = "".join(re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL))
    cd, folder, blocks = re.fullmatch(r"(cd (.*?)\n)?(.*)", blocks, flags=re.DOTALL).groups()
    lines = blocks.replace("python3 ", f"python3 {folder}/" if cd else "python3 ").splitlines()
    lines += re.findall(r"`(python3 [^`]+)`", text)
    return {part.strip() for line in lines for part in line.split("&&")}


ALL = sorted(set().union(*map(commands, PAGES.values())))
SCRIPTS = [command for command in ALL if re.search(r"python3 [\w/]+\.py", command)]
DRAWS = re.compile(r"python3 vis/(?!training|posterior|explorer)\w+/")  # these take longer
QUICK = [command for command in sorted(commands(README)) if DRAWS.match(command)]


def test_the_pages_hold_the_commands_that_this_file_expects():
    assert len(SCRIPTS) >= 40
    assert len(QUICK) >= 5
    install = {f"pip install -r requirements{suffix}.txt" for suffix in ("", "-dev")}
    assert set(ALL) - set(SCRIPTS) == install | {"python3 -m pytest -q"}


@pytest.mark.parametrize("command", SCRIPTS)
def test_every_command_is_parsed_by_its_own_script(command, monkeypatch):
    words = shlex.split(command)
    script = next(i for i, word in enumerate(words) if word.endswith(".py"))
    parse_args = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, *args, **kwargs):
        parse_args(self, *args, **kwargs)
        raise SystemExit("the parser has accepted the flags")

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.setattr(sys, "argv", words[script:])
    with pytest.raises(SystemExit, match="accepted"):
        runpy.run_path(str(ROOT / words[script]), run_name="__main__")


@pytest.mark.parametrize("command", QUICK)
def test_every_figure_of_the_readme_is_drawn(command, tmp_path, monkeypatch, capsys):
    _, script, *flags = shlex.split(command.replace("pretrained/", f"{ROOT}/pretrained/"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script, *flags])
    monkeypatch.setitem(SPLITS, "test", ("t10k", 10_000, slice(0, 1000)))  # for speed
    runpy.run_path(str(ROOT / script), run_name="__main__")
    figure = Path(capsys.readouterr().out.splitlines()[0])
    assert figure.parent == Path("figures", Path(flags[flags.index("--model_params") + 1]).stem)
    assert figure.stat().st_size > 5_000


def test_the_python_of_the_readme_does_what_it_says(tmp_path, monkeypatch, capsys):
    algorithm, hub = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    whole_epoch = 'load_mnist("datasets", "train")'
    assert whole_epoch in algorithm
    program = tmp_path / "program.py"
    program.write_text(algorithm.replace(whole_epoch, f"{whole_epoch}[0][:12_900], None"))
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(program))
    bounds = [float(found) for found in re.findall(r"-ELBO (\S+) nats", capsys.readouterr().out)]
    mean = (load_mnist(ROOT / "datasets", "train")[0] / 255).mean(dim=0).double()
    no_latent = -(mean.xlogy(mean) + (1 - mean).xlogy(1 - mean)).sum().item()  # 206 nats
    assert bounds[0] > no_latent > bounds[-1] + 15

    digits = Image.open(ROOT / "pretrained" / "figures" / "samples.png")
    digits.crop((194, 168, 284, 258)).save(tmp_path / "my_digit.png")
    program.write_text(hub.replace('load("."', f'load("{ROOT}"'))
    assert run_script(program, cwd=tmp_path).returncode == 0
    assert Image.open(tmp_path / "reconstruction.png").size == (28, 28)


def test_evaluate_prints_the_metrics_of_the_page_that_shows_them(monkeypatch, capsys):
    """All metrics but the slow NLL, as far as bf16 and float32 agree."""
    flags = ["--model_params", f"{ROOT}/pretrained/vae_mnist.pth", "--n_importance_samples", "1"]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *flags])
    evaluate.main()
    output = capsys.readouterr().out
    page = PAGES[ROOT / "docs" / "results.md"]
    for label in ("recon", "kl", "-ELBO", "active units", "KL per dimension", "k-NN accuracy"):
        lines = [re.search(rf"^  {label} (.*)", text, re.MULTILINE) for text in (output, page)]
        printed, shown = ([float(n) for n in re.findall(r"\d+\.?\d*", line[1])] for line in lines)
        assert printed == pytest.approx(shown, abs=0.003 if "k-NN" in label else 0.02), label


def test_the_results_are_what_evaluate_printed():
    printed = map(json.loads, (ROOT / "pretrained" / "metrics.jsonl").read_text().splitlines())
    for r in printed:
        cells = [f"{r[key]:.2f}" for key in ("neg_elbo", "nll")]
        name = Path(r["model_params"]).name
        (row,) = re.findall(rf"^\| `{name}`.*", README, flags=re.MULTILINE)
        assert row.split(" | ")[1:3] == cells
        assert (r["n_images"], r["n_importance_samples"]) == (10_000, 500)
        with_errors = [f"{r[key]:.2f} +- {r[f'{key}_stderr']:.2f}" for key in ("neg_elbo", "nll")]
        assert " | ".join(with_errors) in PAGES[ROOT / "pretrained" / "README.md"]
        results = PAGES[ROOT / "docs" / "results.md"]
        assert " | ".join(with_errors) in results or f"| **`{name}`" not in results


def test_every_name_on_the_pages_exists():
    """Linked functions, files and flags."""
    python = "".join(path.read_text() for path in ROOT.glob("**/*.py"))
    for page, text in PAGES.items():
        for name, target in re.findall(r"\[`([\w.]+)`\]\(([^)#]+\.py)\)", text):
            if not name.endswith(".py"):
                code = (page.parent / target).read_text()
                assert re.search(rf"\b{name.split('.')[-1]}\b", code), f"{page}: {name}"
        spans = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        for flag in re.findall(r"(--[a-z]\w+)", " ".join(spans)):
            assert f'"{flag}"' in python or flag in ("--depth", "--help"), f"{page}: {flag}"
        files = {span for span in spans if re.fullmatch(r"[\w/]+\.(py|md|csv|pth|jsonl)", span)}
        for name in files - {"best.pth", "last.pth", "metrics.csv"}:  # those of a run
            folders = (ROOT, page.parent, ROOT / "pretrained", ROOT / "benchmarks")
            found = [folder / name for folder in folders]
            assert any(path.exists() for path in found), f"{page}: {name}"


def test_the_table_of_flags_has_the_defaults():
    defaults = vars(train.make_parser().parse_args([]))
    table = dict(re.findall(r"\| `--(\w+)` \| (.*?) \|", README))
    assert table == {name: str(defaults[name]) for name in table}
    assert len(table) >= 8


def test_the_hashes_are_those_of_the_weights():
    page = PAGES[ROOT / "pretrained" / "README.md"]
    rows = re.findall(r"\| `(\S+\.pth)` \| ([\d,]+) \|.*\| `(\w{64})` \|", page)
    files = {path.name: path.read_bytes() for path in (ROOT / "pretrained").glob("*.pth")}
    hashes = {(name, f"{len(b):,}", hashlib.sha256(b).hexdigest()) for name, b in files.items()}
    assert set(rows) == hashes


def test_the_readme_is_short_and_every_link_and_picture_is_there():
    assert len(README.encode()) < 7_000
    for page, text in PAGES.items():
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
            assert (page.parent / target).exists(), f"{page}: {target}"
    (code_map,) = re.findall(r"```text\n(loss\.py.*?)```", README, flags=re.DOTALL)
    for line in code_map.splitlines():
        assert (ROOT / line.split()[0]).exists(), line
