"""Trains the networks of a figure one after the other, and draws their curves.

Each network has a checkpoint and a CSV in <save_dir>/networks, so a repeated command resumes where
it stopped. Commands that select different networks can share a folder.
"""

import csv
import math
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import asdict
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data import binarize, load_mnist
from estimators import elbo_terms, posterior_noise, posteriors
from model import VAE
from papers.auto_encoding_variational_bayes.experiment import CHUNK, Network, Run, train_chunk
from utils import cli
from utils.files import write_file
from vis.common import BRIGHT, plt, save_figure

COLUMNS = ("figure", "latent_dim", "n_train", "algorithm", "split", "n_samples", "nats")
COLUMNS += ("recipe", "binarize", "estimator")
ROW_ORDER = ("n_train", "latent_dim", "recipe", "binarize", "algorithm", "estimator", "split")
N_ESTIMATED = 10_000  # training images whose bound is estimated, besides all test images
PAPER_CURVES = Path(__file__).with_name("paper_curves.csv")
PROGRESS = ("settings", "n_chunks", "rows", "z", "hmc_step_size")  # attributes in each checkpoint
COLOURS = {"AEVB": BRIGHT[1], "wake-sleep": BRIGHT[0], "MCEM": BRIGHT[2]}
STYLES = {"none": {"lw": 6, "alpha": 0.3}, "paper": {"lw": 1.5}}  # "none": the paper's own curve
STYLES |= {"ours": {"lw": 1.5, "color": "black"}}
NAMES = {"none": "the paper's curve", "paper": "its recipe here", "ours": "AEVB, our recipe"}
DASHES = {"train": ":", "test": "-"}

Rows = list[dict[str, str]]
Estimate = Callable[[VAE, Tensor, bool], dict[str, float]]  # estimator -> nats per image


def make_parser(description: str) -> ArgumentParser:
    """A parser with the flags that all figures share."""
    parser = cli.parser(description)
    add = parser.add_argument
    add("--n_samples", type=cli.number(CHUNK), default=1_000_000, help="samples per network")
    add("--step_size", type=cli.number(0.0), help="Adagrad's step size (default: by network)")
    add("--data_dir", type=Path, default=cli.DATA_DIR, help="folder that holds MNIST/raw/*.gz")
    where = "folder for all files; if it has a CSV but no networks, the figure is only redrawn"
    add("--save_dir", type=Path, default=Path("figures"), help=where)
    cli.add_seed_flag(parser)
    return parser


def bound(model: VAE, images: Tensor, is_last: bool = False) -> dict[str, float]:
    """The ELBO of images (N, 1, 28, 28) uint8 with one posterior draw each, in nats per image."""
    q = posteriors(model, images)
    recon, kl, _ = elbo_terms(model, images, q, posterior_noise(*q.mu.shape))
    return {"bound": -(recon + kl).mean().item()}


def load_splits(network: Network, data_dir: Path) -> tuple[Tensor, dict[str, Tensor]]:
    """The images to train on and, for each split, the images to evaluate: (N, 1, 28, 28) uint8."""
    images = load_mnist(data_dir, "train")[0][: network.n_train]
    if network.binarize == "fixed":
        images = binarize(images, "dynamic")
    mode = "none" if network.binarize == "none" else "dynamic"
    splits = {"train": images[:N_ESTIMATED], "test": load_mnist(data_dir, "test")[0]}
    return images, {split: binarize(part, mode) for split, part in splits.items()}


def curve_points(n_samples: int, chunk: int) -> set[int]:
    """Chunks that end at a point of the curve: ten per decade from 10^5 samples, and the last."""
    points = [10 ** (i / 10) for i in range(50, 90) if 10 ** (i / 10) < n_samples]
    return {max(1, round(n / chunk)) for n in points} | {math.ceil(n_samples / chunk)}


def save(run: Run, path: Path) -> None:
    """Writes a network's checkpoint and, beside it, its CSV. Raises UserError.

    The checkpoint is written last: if a run stops before that, the resumed run rewrites the CSV.
    """
    write_rows(path.with_suffix(".csv"), run.rows)
    state = {name: getattr(run, name) for name in PROGRESS}
    state |= {name: getattr(run, name).state_dict() for name in ("model", "optimizer")}
    write_file(path, lambda file: torch.save(state, file))


def resume(run: Run, path: Path) -> None:
    """Restores a run from its checkpoint. Raises UserError."""
    try:
        state = torch.load(path, weights_only=True)
        if state["settings"] != run.settings:
            raise ValueError
        run.model.load_state_dict(state.pop("model"))
        run.optimizer.load_state_dict(state.pop("optimizer"))
        vars(run).update(state)
    except Exception as error:  # errors from damaged files are undocumented
        reason = "damaged or has another --seed, --step_size or (with our recipe) --n_samples"
        raise cli.UserError(f"{path} is {reason}; choose another --save_dir.") from error


def train(network: Network, estimate: Estimate, args: Namespace) -> VAE:
    """Trains a network up to --n_samples, from its checkpoint if it has one. Raises UserError."""
    images, splits = load_splits(network, args.data_dir)
    run, path = Run(network, images, args), args.save_dir / "networks" / f"{network}.pth"
    if path.is_file():
        resume(run, path)
    points = curve_points(args.n_samples, network.chunk)
    torch.set_flush_denormal(True)  # denormal gradients would slow down all matrix products
    for chunk in tqdm(range(run.n_chunks + 1, max(points) + 1), str(network), disable=None):
        train_chunk(run, images, args)
        if chunk in points:
            run.rows += evaluate(run, splits, estimate, is_last=chunk == max(points))
            save(run, path)
    return run.model.eval()


def evaluate(run: Run, splits: dict[str, Tensor], estimate: Estimate, is_last: bool) -> Rows:
    """Rows of the CSV, one for each split and estimator."""
    rows, n_samples = [], run.n_chunks * run.network.chunk
    for split, images in splits.items():
        for estimator, nats in estimate(run.model.eval(), images, is_last).items():
            row = asdict(run.network) | {"split": split, "n_samples": n_samples}
            row |= {"estimator": estimator, "nats": f"{nats:.3f}"}
            rows.append({column: str(row[column]) for column in COLUMNS})
    return rows


def figure_rows(networks: list[Network], estimate: Estimate, args: Namespace) -> Rows:
    """Trains `networks`. Returns the rows of all the figure's networks in --save_dir.

    If that has the figure's CSV but no networks, trains nothing. Raises UserError.
    """
    figure, folder = networks[0].figure, args.save_dir / "networks"
    path = args.save_dir / f"figure_{figure}.csv"
    if folder.is_dir() or not path.is_file():
        for network in networks:
            train(network, estimate, args)
        files = folder.glob(f"figure_{figure}_*.csv")
        rows = [row for file in files for row in read_rows(file)]
        rows.sort(key=lambda row: [int(row[k]) if row[k].isdigit() else row[k] for k in ROW_ORDER])
        write_rows(path, rows)
    rows = read_rows(path)
    print_comparison(rows)
    return rows


def read_rows(path: Path) -> Rows:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: Rows) -> None:
    lines = [COLUMNS, *(row.values() for row in rows)]
    content = "".join(",".join(line) + "\r\n" for line in lines).encode()
    write_file(path, lambda file: file.write(content))


def print_comparison(rows: Rows) -> None:
    """Prints our values after 10^n samples beside the paper's, where these exist."""
    paper = read_rows(PAPER_CURVES)
    for row in rows:
        same = {name: row[name] for name in COLUMNS[:5]}
        theirs = [other for other in paper if same.items() <= other.items()]
        curve = sorted((math.log10(float(r["n_samples"])), float(r["nats"])) for r in theirs)
        power = math.log10(int(row["n_samples"]))
        if curve and curve[0][0] <= power <= curve[-1][0] and power.is_integer():
            name = ", ".join(row[column] for column in COLUMNS if column not in ("figure", "nats"))
            nats = np.interp(power, *zip(*curve, strict=True))
            print(f"{name}: {float(row['nats']):.1f} nats, the paper {nats:.1f}")


def draw(rows: Rows, column: str, panels: dict[str, str], save_dir: Path, **first_axes) -> None:
    """Draws nats against samples, one panel per value of `column`; `panels` maps values to titles.

    The paper's curves are thick and pale. Training curves are dotted, test curves solid.
    """
    size = (2.5 * len(panels) + 1.5, 4)
    figure, all_axes = plt.subplots(1, len(panels), sharex=True, sharey=True, figsize=size)
    paper = [row for row in read_rows(PAPER_CURVES) if row["figure"] == rows[0]["figure"]]
    rows = rows + [row | {"recipe": "none"} for row in paper]
    for axes, (value, title) in zip(all_axes, panels.items(), strict=True):
        for recipe, algorithm, split in product(STYLES, COLOURS, DASHES):
            wanted = {column: value, "algorithm": algorithm, "recipe": recipe, "split": split}
            curve = [row for row in rows if wanted.items() <= row.items()]
            points = sorted((float(row["n_samples"]), float(row["nats"])) for row in curve)
            style = {"color": COLOURS[algorithm], "ls": DASHES[split]} | STYLES[recipe]
            axes.plot(*np.reshape(points, (-1, 2)).T, **style)
        axes.set(title=title, xscale="log")
        axes.grid(alpha=0.3)
    figure.supxlabel("training samples evaluated", fontsize="medium", y=-0.02)
    entries = {name: {"color": colour, "lw": 4} for name, colour in COLOURS.items()}
    entries |= {NAMES[recipe]: {"color": "gray"} | style for recipe, style in STYLES.items()}
    entries |= {split: {"color": "gray", "ls": dashes} for split, dashes in DASHES.items()}
    shown = {row["algorithm"] for row in rows} | {NAMES.get(row["recipe"]) for row in rows}
    for text, style in entries.items():
        if text in shown or text in DASHES:
            all_axes[-1].plot([], [], label=text, **style)
    all_axes[-1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    all_axes[0].set(**first_axes)
    save_figure(figure, save_dir, f"figure_{rows[0]['figure']}")
