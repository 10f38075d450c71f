"""Trains the networks of a figure one after the other, keeps their curves, and draws them.

Each network has a checkpoint and a CSV in `--save_dir`/networks, so a repeated command resumes a
stopped one. Commands that select different networks can train at the same time in one folder.
"""

import csv
import io
import math
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from data import binarize, load_mnist
from estimators import elbo_terms, posterior_noise, posteriors
from model import VAE
from papers.auto_encoding_variational_bayes.experiment import CHUNK, Network, Run, train_chunk
from utils import cli
from utils.cli import UserError
from utils.device import pick_device, pick_precision
from utils.files import write_file
from vis.common import BRIGHT, plt

COLUMNS = ("figure", "latent_dim", "n_train", "algorithm", "split", "n_samples", "nats")
COLUMNS += ("recipe", "binarize", "estimator")
ROW_ORDER = ("n_train", "latent_dim", "recipe", "binarize", "algorithm", "estimator", "split")
N_ESTIMATED = 10_000  # training images whose bound is estimated, besides all test images
PAPER_CURVES = Path(__file__).with_name("paper_curves.csv")
COLOURS = dict(zip(("AEVB", "wake-sleep", "MCEM"), BRIGHT[1::-1] + BRIGHT[2:], strict=False))
BROAD, THIN = {"lw": 6, "alpha": 0.3}, {"lw": 1.5}  # the paper's curves and ours
PROGRESS = ("n_samples", "rows", "z", "step_size")  # what a checkpoint holds besides weights
SPLIT_STYLES = {"train": ":", "test": "-"}

Rows = list[dict[str, str]]
Estimate = Callable[[VAE, Tensor, bool], dict[str, float]]  # nats per image by estimator


def make_parser(description: str) -> ArgumentParser:
    """The flags of every figure."""
    parser = cli.parser(description)
    add, precision = parser.add_argument, pick_precision("auto", pick_device("cpu"))
    add("--n_samples", type=cli.number(CHUNK), default=1_000_000, help="for each network")
    add("--step_size", type=cli.number(0.0), help="of Adagrad (default: that of STEP_SIZES)")
    add("--precision", choices=("fp32", "bf16"), default=precision, help="in training")
    add("--data_dir", type=Path, default=cli.DATA_DIR, help="folder that holds MNIST/raw/*.gz")
    text = "for figure, CSV and networks; a CSV without networks is drawn as it is"
    add("--save_dir", type=Path, default=Path("figures"), help=text)
    cli.add_seed_flag(parser)
    return parser


def bound(model: VAE, images: Tensor, is_last: bool = False) -> dict[str, float]:
    """The ELBO of images (N, 1, 28, 28) uint8 with one posterior draw each, in nats per image."""
    q = posteriors(model, images)
    terms = elbo_terms(model, images, q, posterior_noise(*q.mu.shape))
    return {"bound": -(terms.recon + terms.kl).mean().item()}


def load_splits(network: Network, data_dir: Path) -> tuple[Tensor, dict[str, Tensor]]:
    """The images to train on, and by split those to evaluate, binarised once.

    All are (N, 1, 28, 28) uint8. Raises UserError.
    """
    images = load_mnist(data_dir, "train")[0][: network.n_train]
    if network.binarize == "fixed":
        images = binarize(images, "dynamic")
    mode = "none" if network.binarize == "none" else "dynamic"
    splits = {"train": images[:N_ESTIMATED], "test": load_mnist(data_dir, "test")[0]}
    return images, {split: binarize(part, mode) for split, part in splits.items()}


def curve_points(n_samples: int, chunk: int) -> list[int]:
    """Where a curve has its points: ten per decade from 10^5 samples to `n_samples`.

    All are whole chunks, of which the last one holds `n_samples`.
    """
    points = [10 ** (i / 10) for i in range(50, 90) if 10 ** (i / 10) < n_samples]
    numbers = {max(1, round(n / chunk)) for n in points} | {math.ceil(n_samples / chunk)}
    return [chunk * number for number in sorted(numbers)]


def path_of(network: Network, args: Namespace) -> Path:
    """The network's checkpoint; its CSV lies beside it."""
    return args.save_dir / "networks" / f"{network}.pth"


def settings(network: Network, args: Namespace) -> list:
    """What must agree when a run is resumed. Our learning rate depends on the length of the run."""
    length = args.n_samples if network.recipe == "ours" else None
    return [args.seed, args.precision, args.step_size, length]


def save(run: Run, args: Namespace) -> None:
    """Writes CSV and checkpoint of a network. Raises UserError.

    The checkpoint comes last: until it is written, a resumed run repeats the rows of the CSV.
    """
    path, buffer = path_of(run.network, args), io.BytesIO()
    write_rows(path.with_suffix(".csv"), run.rows)
    state = {name: getattr(run, name) for name in PROGRESS}
    state |= {name: getattr(run, name).state_dict() for name in ("model", "optimizer")}
    torch.save(state | {"settings": settings(run.network, args)}, buffer)
    write_file(path, buffer.getbuffer())


def resume(run: Run, args: Namespace) -> None:
    """Takes over the network's checkpoint, if there is one. Raises UserError."""
    path = path_of(run.network, args)
    if not path.is_file():
        return
    try:
        state = torch.load(path, weights_only=True)
        for name in ("model", "optimizer"):
            getattr(run, name).load_state_dict(state[name])
        vars(run).update({name: state[name] for name in PROGRESS})
        is_same = state["settings"] == settings(run.network, args)
    except Exception as error:  # what foreign files raise is not documented
        raise UserError(f"{path} is not a network of this script; delete it.") from error
    if not is_same:
        raise UserError(
            f"{path} was trained with another --seed, --precision, --step_size or (by our recipe) "
            f"--n_samples; choose another --save_dir."
        )


def train(network: Network, estimate: Estimate, args: Namespace) -> VAE:
    """The network after --n_samples, trained from its checkpoint if it has one. Raises UserError."""
    images, splits = load_splits(network, args.data_dir)
    run = Run(network, images, args)
    resume(run, args)
    points = curve_points(args.n_samples, network.chunk)
    torch.set_flush_denormal(True)  # vanishing gradients would slow every product
    how = {"unit_scale": True, "leave": False, "disable": None}
    bar = tqdm(desc=str(network), total=points[-1], initial=run.n_samples, **how)
    for point in [n for n in points if n > run.n_samples]:
        while run.n_samples < point:
            train_chunk(run, images, args)
            bar.update(network.chunk)
        for split, part in splits.items():
            for estimator, nats in estimate(run.model.eval(), part, point == points[-1]).items():
                row = {"split": split, "estimator": estimator, "nats": f"{nats:.3f}"}
                row |= asdict(network) | {"n_samples": point}
                run.rows.append({column: str(row[column]) for column in COLUMNS})
        save(run, args)
    bar.close()
    return run.model.eval()


def figure_rows(networks: list[Network], estimate: Estimate, args: Namespace) -> Rows:
    """Trains `networks`, and writes the figure's CSV: the rows of all its networks in --save_dir.

    A CSV in a folder without networks is left as it is. Prints a comparison with the paper.
    Raises UserError.
    """
    figure, folder = networks[0].figure, args.save_dir / "networks"
    path = args.save_dir / f"figure_{figure}.csv"
    if folder.is_dir() or not path.is_file():
        for network in networks:
            train(network, estimate, args)
        rows = [row for file in folder.glob("*.csv") for row in read_rows(file)]
        rows = [row for row in rows if row["figure"] == str(figure)]
        rows.sort(key=lambda row: [int(row[k]) if row[k].isdigit() else row[k] for k in ROW_ORDER])
        write_rows(path, rows)
    rows = read_rows(path)
    print_comparison(rows)
    return rows


def read_rows(path: Path) -> Rows:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: Rows) -> None:
    """Raises UserError."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    write_file(path, text.getvalue().encode())


def print_comparison(rows: Rows) -> None:
    """Prints our value and the paper's at every power of ten of samples, for each curve."""
    paper = read_rows(PAPER_CURVES)
    same = ("figure", "latent_dim", "n_train", "algorithm", "split")
    for row in rows:
        curve = [other for other in paper if all(other[k] == row[k] for k in same)]
        power = math.log10(int(row["n_samples"]))
        if curve and power.is_integer():
            points = sorted((math.log10(float(r["n_samples"])), float(r["nats"])) for r in curve)
            theirs = np.interp(power, *zip(*points, strict=True), left=math.nan, right=math.nan)
            name = ", ".join(row[column] for column in COLUMNS if column not in ("figure", "nats"))
            print(f"{name}: {float(row['nats']):.1f} nats, the paper {theirs:.1f}")


def draw(rows: Rows, column: str, panels: dict[str, str]) -> Figure:
    """Nats against samples, one panel per value of `column`; `panels` has their titles.

    The paper's curves lie behind, broad and pale. Training is dotted, test solid.
    """
    size = (2.5 * len(panels) + 1.5, 4)
    figure, all_axes = plt.subplots(1, len(panels), sharex=True, sharey=True, figsize=size)
    paper = [row for row in read_rows(PAPER_CURVES) if row["figure"] == rows[0]["figure"]]
    rows = rows + [row | {"recipe": "none"} for row in paper]
    lines = {(name, "none"): {"color": c, **BROAD} for name, c in COLOURS.items()}
    lines |= {(name, "paper"): {"color": c, **THIN} for name, c in COLOURS.items()}
    lines |= {("AEVB", "ours"): {"color": "black", **THIN}}
    for axes, (value, title) in zip(all_axes, panels.items(), strict=True):
        for (algorithm, recipe), style in lines.items():
            for split, dashes in SPLIT_STYLES.items():
                wanted = {column: value, "algorithm": algorithm, "recipe": recipe, "split": split}
                curve = [row for row in rows if wanted.items() <= row.items()]
                if points := sorted((float(r["n_samples"]), float(r["nats"])) for r in curve):
                    axes.plot(*zip(*points, strict=True), dashes, **style)
        axes.set(title=title, xscale="log")
        axes.grid(alpha=0.3)
    figure.supxlabel("training samples evaluated", fontsize="medium", y=-0.02)
    add_legend(all_axes[-1], {(row["algorithm"], row["recipe"]) for row in rows})
    return figure


def add_legend(axes: Axes, shown: set[tuple[str, str]]) -> None:
    """Explains colour, width and dashes of the curves of (algorithm, recipe), beside `axes`."""
    entries = {n: {"color": c, "lw": 4} for n, c in COLOURS.items() if (n, "none") in shown}
    entries |= {"the paper's curve": {"color": "gray", **BROAD}}
    entries |= {"its recipe here": {"color": "gray", **THIN}}
    if ("AEVB", "ours") in shown:
        entries |= {"AEVB, our recipe": {"color": "black", **THIN}}
    entries |= {split: {"color": "gray", "ls": ls} for split, ls in SPLIT_STYLES.items()}
    for text, style in entries.items():
        axes.plot([], [], label=text, **style)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
