"""Trains the networks of a figure side by side: checkpoints, the CSV as it grows, the drawing.

Each network has a process with one thread. What it measures is in the CSV at once, and its
checkpoint is beside that: the same command goes on where it was stopped.
"""

import csv
import io
import math
import os
import signal
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.pool import AsyncResult
from pathlib import Path

from utils import cli
from utils.checkpoint import locked_folder, write_atomically, write_csv
from utils.cli import UserError
from utils.device import pick_device, pick_precision

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from data import fixed_binarization, load_mnist, to_float
from estimators import elbo_terms, posterior_noise, posteriors
from model import VAE
from papers.auto_encoding_variational_bayes.experiment import (
    N_TRIAL_CHUNKS,
    STEP_SIZES,
    Experiment,
    Network,
    Run,
    train_chunk,
)
from papers.auto_encoding_variational_bayes.inference import joint_nll
from vis.common import BRIGHT, plt

COLUMNS = ("figure", "latent_dim", "n_train", "algorithm", "split", "n_samples", "nats")
COLUMNS += ("recipe", "binarize", "estimator")
N_MEASURED = 10_000  # training images whose bound is taken; of the test images it is all
PAPER_CURVES = Path(__file__).with_name("paper_curves.csv")
SAVE_SECONDS = 5  # a stopped run loses no more
SHARED: dict = {}  # in a worker: the lock of the CSV, and the count of samples so far
COLOURS = dict(zip(("AEVB", "wake-sleep", "MCEM"), BRIGHT[1::-1] + BRIGHT[2:], strict=False))
BROAD, THIN = {"lw": 6, "alpha": 0.3}, {"lw": 1.5}  # the paper's curves and ours
SPLIT_STYLES = {"train": ":", "test": "-"}


def make_parser(description: str, n_samples: int) -> ArgumentParser:
    """A parser with the flags of every figure of the paper."""
    parser = cli.parser(description)
    add, cpu = parser.add_argument, pick_device("cpu")
    add("--n_samples", type=cli.integer(1, 10**9), default=n_samples, help="for each network")
    add("--save_dir", type=Path, default=Path("figures"), help="for PNG, CSV and checkpoints")
    cli.add_seed_flag(parser)
    add("--data_dir", type=Path, default=cli.DATA_DIR, help="folder that holds MNIST/raw/*.gz")
    precisions = ("fp32", "bf16")
    add("--precision", choices=precisions, default=pick_precision("auto", cpu), help="in training")
    add("--step_size", type=float, choices=STEP_SIZES, help="of Adagrad; default: the best start")
    processes = cli.integer(1, 1024)
    add("--n_processes", type=processes, default=os.cpu_count(), help="networks at a time")
    return parser


def experiment_of(figure: int, measure: Callable, args: Namespace) -> Experiment:
    """What the flags ask of the networks of a figure."""
    names = ("n_samples", "seed", "precision", "step_size", "data_dir", "save_dir")
    return Experiment(figure, measure, **{name: getattr(args, name) for name in names})


class Splits:
    """The images to train on and, binarised once, those to measure: (N, 1, 28, 28) uint8."""

    def __init__(self, network: Network, data_dir: Path):
        mode = "none" if network.binarize == "none" else "dynamic"
        self.images = load_mnist(data_dir, "train")[0][: network.n_train]
        if network.binarize == "fixed":
            self.images = fixed_binarization(self.images, mode)
        self.train = fixed_binarization(self.images[:N_MEASURED], mode)
        self.test = fixed_binarization(load_mnist(data_dir, "test")[0], mode)


def bound(model: VAE, images: Tensor, is_last: bool = False) -> dict[str, float]:
    """The ELBO of images (N, 1, 28, 28) uint8, one posterior draw each: nats per image."""
    q = posteriors(model, images)
    terms = elbo_terms(model, images, q, posterior_noise(*q.mu.shape))
    return {"bound": -(terms.recon + terms.kl).mean().item()}


def choose_step_size(network: Network, splits: Splits, experiment: Experiment) -> float:
    """The step of Adagrad with the best training bound after the first samples.

    Monte Carlo EM has no bound; there it is log p(x, z) at the chains.
    """

    def score(lr: float) -> float:
        run = Run(network, splits.images, experiment.seed, lr)
        for _ in range(min(N_TRIAL_CHUNKS, math.ceil(experiment.n_samples / network.chunk))):
            train_chunk(run, splits.images, experiment)
        if network.algorithm == "MCEM":
            n = min(len(run.z), N_MEASURED)
            with torch.inference_mode():
                nats = -joint_nll(run.model, to_float(splits.train[:n]), run.z[:n]).item()
        else:
            nats = bound(run.model, splits.train)["bound"]
        return nats if math.isfinite(nats) else -math.inf

    return max(STEP_SIZES, key=score)


def measured(n_samples: int, chunk: int) -> set[int]:
    """The samples after which curves have a point: from 10^5 on ten in each factor of ten.

    All are whole chunks; the last holds `n_samples`.
    """
    points = [10 ** (i / 10) for i in range(50, 90) if 10 ** (i / 10) < n_samples]
    numbers = {max(1, round(n / chunk)) for n in points} | {math.ceil(n_samples / chunk)}
    return {chunk * number for number in numbers}


def resume(network: Network, splits: Splits, experiment: Experiment) -> Run:
    """The run of the checkpoint, or a new one with a step chosen. Raises UserError."""
    path = experiment.checkpoint(network)
    if not path.is_file():
        is_given = experiment.step_size or network.recipe == "ours"  # which has no such step
        lr = experiment.step_size if is_given else choose_step_size(network, splits, experiment)
        return Run(network, splits.images, experiment.seed, lr)
    run = Run(network, splits.images, experiment.seed, 0.0)
    try:
        state = torch.load(path, weights_only=True)
        run.load_state_dict(state)
    except Exception as error:  # whatever a foreign file provokes
        raise UserError(f"{path} is not a network of this script; delete it.") from error
    if state["settings"] != settings(network, experiment):
        raise UserError(
            f"{path} was trained with another --seed, --precision, --step_size or (by our recipe) "
            f"--n_samples; choose another --save_dir."
        )
    return run


def trained_model(network: Network, experiment: Experiment) -> VAE:
    """The network as its checkpoint has it. Raises UserError."""
    path = experiment.checkpoint(network)
    if not path.is_file():
        raise UserError(f"{path} is not there; choose another --save_dir to train it again.")
    splits = Splits(network, experiment.data_dir)
    return resume(network, splits, experiment).model.eval()


def settings(network: Network, experiment: Experiment) -> list:
    """What a checkpoint must agree with: our recipe's learning rate knows the end of the run."""
    end = experiment.n_samples if network.recipe == "ours" else None
    return [experiment.seed, experiment.precision, experiment.step_size, end]


def save(run: Run, experiment: Experiment) -> None:
    """Writes the checkpoint. Raises UserError."""
    buffer = io.BytesIO()
    torch.save(run.state_dict() | {"settings": settings(run.network, experiment)}, buffer)
    write_atomically(experiment.checkpoint(run.network), buffer.getbuffer())


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, none if there is no file."""
    if not path.is_file():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def rows_of(network: Network, rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [row for row in rows if network.columns.items() <= row.items()]


def record(run: Run, experiment: Experiment) -> None:
    """Puts all rows of the run into the CSV, in the place of those that it had there."""
    if not run.rows:
        return
    rows = read_rows(experiment.csv)
    old = rows_of(run.network, rows)
    rows = [row for row in rows if row not in old]
    rows += [row | {"figure": str(experiment.figure)} for row in run.rows]
    keys = ("n_train", "latent_dim", "recipe", "binarize", "algorithm", "estimator", "split")
    rows.sort(key=lambda row: [int(row[k]) if row[k].isdigit() else row[k] for k in keys])
    write_csv(experiment.csv, rows)


def measure(run: Run, splits: Splits, experiment: Experiment, is_last: bool) -> list[dict]:
    """A row of the CSV for each split and estimator."""
    rows = []
    for split, images in (("train", splits.train), ("test", splits.test)):
        for estimator, nats in experiment.measure(run.model, images, is_last).items():
            row = run.network.columns | {"split": split, "estimator": estimator}
            row |= {"figure": experiment.figure, "n_samples": run.n_samples, "nats": f"{nats:.3f}"}
            rows.append({column: str(row[column]) for column in COLUMNS})
    return rows


def start_worker(lock, done) -> None:
    """Gives each process one thread, and the lock of the CSV and a count of samples to share."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # vanishing gradients would slow every product
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which stops its own
    SHARED.update(lock=lock, done=done)


def report(n_samples: int) -> None:
    """Moves the progress bar."""
    with SHARED["done"].get_lock():
        SHARED["done"].value += n_samples


def keep(run: Run, experiment: Experiment) -> None:
    """Writes the checkpoint, and what it has measured into the CSV."""
    save(run, experiment)
    with SHARED["lock"]:
        record(run, experiment)


def train_network(network: Network, experiment: Experiment) -> str:
    """Trains to `n_samples`, from the checkpoint if there is one. Returns a line about its end."""
    splits = Splits(network, experiment.data_dir)
    run = resume(network, splits, experiment)
    points, kept = measured(experiment.n_samples, network.chunk), -math.inf
    report(run.n_samples)
    while run.n_samples < max(points):
        train_chunk(run, splits.images, experiment)
        report(run.network.chunk)
        if run.n_samples in points:
            run.rows += measure(run, splits, experiment, run.n_samples == max(points))
        if run.n_samples in points or time.monotonic() - kept > SAVE_SECONDS:
            keep(run, experiment)
            kept = time.monotonic()
    keep(run, experiment)
    ends = [f"{row['estimator']} {row['split']} {row['nats']}" for row in run.rows[-4:]]
    speed = f"{1e6 * run.seconds / run.n_samples:.1f} s a million"
    return f"{network}: {', '.join(ends)} nats; {run.n_samples:,} samples, {speed}"


def run_networks(
    networks: list[Network], experiment: Experiment, n_processes: int
) -> list[dict[str, str]]:
    """Trains the networks that the CSV does not hold to the end. Returns its rows.

    Raises UserError.
    """
    context = get_context("spawn")
    lock, done = context.Lock(), context.Value("q", 0)
    with locked_folder(experiment.save_dir):  # fails now, not after the work
        held = read_rows(experiment.csv)
        todo = [n for n in networks if not holds(held, n, experiment.n_samples)]
        if not todo:
            return held
        experiment.checkpoint(todo[0]).parent.mkdir(exist_ok=True)
        with (
            context.Pool(min(n_processes, len(todo)), start_worker, (lock, done)) as workers,
            tqdm(total=len(todo) * experiment.n_samples, unit_scale=True, disable=None) as bar,
        ):
            runs = [workers.apply_async(train_network, (n, experiment)) for n in todo]
            while runs:
                time.sleep(0.1)
                bar.update(done.value - bar.n)
                for run in filter(AsyncResult.ready, runs.copy()):
                    tqdm.write(run.get())  # raises what its process raised
                    runs.remove(run)
        return read_rows(experiment.csv)


def holds(rows: list[dict[str, str]], network: Network, n_samples: int) -> bool:
    """Whether the curve of the network is there up to `n_samples`."""
    return max((int(row["n_samples"]) for row in rows_of(network, rows)), default=0) >= n_samples


def print_comparison(rows: list[dict[str, str]]) -> None:
    """A line for each curve at every power of ten of samples, beside the paper's curve there."""
    paper = read_rows(PAPER_CURVES)
    same = ("figure", "latent_dim", "n_train", "algorithm", "split")
    for row in rows:
        curve = sorted(
            (math.log10(float(other["n_samples"])), float(other["nats"]))
            for other in paper
            if all(other[column] == row[column] for column in same)
        )
        n_samples = int(row["n_samples"])
        if curve and math.log10(n_samples).is_integer():
            x, y = zip(*curve, strict=True)
            theirs = np.interp(math.log10(n_samples), x, y, left=math.nan, right=math.nan)
            name = ", ".join(row[column] for column in COLUMNS if column not in ("figure", "nats"))
            print(f"{name}: {float(row['nats']):.1f} nats, the paper {theirs:.1f}")


def draw_curves(rows: list[dict[str, str]], panels: dict[str, dict[str, str]]) -> Figure:
    """Nats against samples: a panel for each title and what its rows must say.

    The paper's curves lie behind, broad and pale. Training is dotted, test solid.
    """
    size = (2.5 * len(panels) + 1.5, 4)
    figure, all_axes = plt.subplots(1, len(panels), sharex=True, sharey=True, figsize=size)
    rows = rows + [row | {"recipe": "none"} for row in read_rows(PAPER_CURVES)]
    lines = {(name, "none"): {"color": c, **BROAD} for name, c in COLOURS.items()}
    lines |= {(name, "paper"): {"color": c, **THIN} for name, c in COLOURS.items()}
    lines |= {("AEVB", "ours"): {"color": "black", **THIN}}
    drawn = set()
    for axes, (title, wanted) in zip(all_axes, panels.items(), strict=True):
        for (algorithm, recipe), style in lines.items():
            for split, dashes in SPLIT_STYLES.items():
                this = wanted | {"algorithm": algorithm, "recipe": recipe, "split": split}
                curve = [row for row in rows if this.items() <= row.items()]
                points = sorted((float(row["n_samples"]), float(row["nats"])) for row in curve)
                if points:
                    axes.plot(*zip(*points, strict=True), dashes, **style)
                    drawn.add((algorithm, recipe))
        axes.set(title=title, xscale="log")
        axes.grid(alpha=0.3)
    figure.supxlabel("training samples evaluated", fontsize="medium", y=-0.02)
    add_legend(all_axes[-1], drawn)
    return figure


def add_legend(axes: Axes, drawn: set[tuple[str, str]]) -> None:
    """Beside the last panel, of what is `drawn` by algorithm and recipe: colour, width, dashes."""
    shown = {name: c for name, c in COLOURS.items() if (name, "none") in drawn}
    entries = {name: {"color": c, "lw": 4} for name, c in shown.items()}
    entries |= {"the paper's curve": {"color": "gray", **BROAD}}
    entries |= {"its recipe here": {"color": "gray", **THIN}}
    if ("AEVB", "ours") in drawn:
        entries |= {"AEVB, our recipe": {"color": "black", **THIN}}
    entries |= {split: {"color": "gray", "ls": ls} for split, ls in SPLIT_STYLES.items()}
    for text, style in entries.items():
        axes.plot([], [], label=text, **style)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
