"""Code that the figures share: flags, models, test images, colours, grids of digits, files."""

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

os.environ["MPLBACKEND"] = "Agg"  # Agg needs no screen; a notebook may have set another backend
import matplotlib.pyplot as plt
import torch
from matplotlib.patheffects import withStroke
from torch import Tensor

from checkpoint import load_checkpoint
from data import binarize, load_mnist
from estimators import kl_of_dimensions, posteriors
from model import VAE
from utils import cli
from utils.cli import UserError
from utils.device import pick_device, pick_precision, rng
from utils.files import write_file

# The colour of each digit in every figure: Paul Tol's seven bright colours and three others.
# Colour-blind readers can tell all ten apart on white and on black.
BRIGHT = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#999999")
DIGIT_COLOURS = (*BRIGHT, "#ee7733", "#009988", "#8c564b")
plt.rcParams.update({"savefig.dpi": 150, "font.size": 11, "axes.titlesize": 12})


class NotApplicable(UserError):
    """The figure cannot be drawn for this kind of model."""


def figures_of(path: Path) -> Path:
    """Returns figures/vae_mnist for vae_mnist.pth, but figures/run_best for run/best.pth."""
    is_named = path.stem not in ("best", "last", "metrics")
    return Path("figures", path.stem if is_named else f"{path.resolve().parent.name}_{path.stem}")


def make_parser(description: str) -> ArgumentParser:
    """A parser with --model_params, --save_dir, --seed and the common flags."""
    parser = cli.parser(description)
    add = parser.add_argument
    add("--model_params", type=Path, required=True, help="a model's .pth file")
    add("--save_dir", type=Path, help="folder for the figures (default: figures/<weights>)")
    cli.add_seed_flag(parser)
    cli.add_common_flags(parser, batch_size=1000)
    parser.set_defaults(precision="fp32")
    return parser


def load_model(args: Namespace) -> tuple[VAE, dict, str]:
    """Loads --model_params: the model, its checkpoint and a title. Sets --save_dir if missing."""
    figures = figures_of(args.model_params)
    args.save_dir = args.save_dir or figures
    model, checkpoint = load_checkpoint(args.model_params, pick_device(args.device))
    config, trained = model.config, checkpoint["args"]
    pixels = "grey" if trained["binarize"] == "none" else "binarised"
    name = f"{figures.name}: {pixels} {trained['dataset']}, {config.arch}, "
    name += f"{config.latent_dim}-dimensional z"
    return model, checkpoint, name + ", flow prior" * (config.prior == "flow")


class EncodedTestSet:
    """The model of --model_params, on the CPU, and its posteriors for the N test images.

    Raises UserError, or NotApplicable if `needs_plane` is set and z is not two-dimensional.
    """

    def __init__(self, args: Namespace, needs_plane: bool = False):
        model, checkpoint, self.name = load_model(args)
        if needs_plane and model.config.latent_dim != 2:
            raise NotApplicable("the figure needs 2 latent dimensions; use vis/traversal.")
        images, self.labels = load_mnist(args.data_dir, "test", checkpoint["args"]["dataset"])
        self.binarize = checkpoint["args"]["binarize"]
        self.images = binarize(images, self.binarize)  # (N, 1, 28, 28) uint8, grey or binary
        model.precision = pick_precision(args.precision, model.device)
        q = posteriors(model, self.images, args.batch_size)
        prior = model.config.prior
        self.kl = kl_of_dimensions(q, prior).cpu()  # (L,), nats
        self.by_kl = self.kl.argsort(descending=True).tolist()  # dimensions, largest KL first
        self.plane = [0, 1] if len(self.kl) == 2 else self.by_kl[:2]  # the dimensions of a map
        self.mu, self.logvar = (part.cpu() for part in q)  # (N, L) each
        self.model = model.cpu().requires_grad_(False)
        self.model.precision = "fp32"
        self.u, _ = self.model.prior.to_normal(self.mu)  # (N, L): u is mu without a flow
        self.symbol = "u" if prior == "flow" else "z"  # the letter for u in labels
        self.axis_labels = {"xlabel": f"${self.symbol}_1$", "ylabel": f"${self.symbol}_2$"}

    def decode(self, z: Tensor) -> Tensor:
        """Decodes all N points of z (..., n, L) to pixel means (N, 1, 28, 28) in [0, 1]."""
        return torch.sigmoid(self.model.decode(z.flatten(0, -2)))

    def decode_normal(self, u: Tensor) -> Tensor:
        """Decodes u ~ N(0, I), which the prior maps to z. Shapes are as in `decode`."""
        return self.decode(self.model.prior.from_normal(u))


def plane_grid(coordinates: Tensor) -> Tensor:
    """The points of a square grid, row by row from the top left of a plot: (n,) -> (n, n, 2)."""
    return torch.stack(torch.meshgrid(coordinates, coordinates.flip(0), indexing="xy"), dim=-1)


def scatter_digits(axes: plt.Axes, u: Tensor, labels: Tensor, size: float, alpha: float) -> None:
    """Draws u (N, 2) as dots in shuffled order. Their colours show their digits, `labels` (N,).

    Bold digits mark the medians of their dots. A circle marks 2 standard deviations of N(0, I).
    """
    order = torch.randperm(len(labels), generator=rng(0))
    colours = [DIGIT_COLOURS[label] for label in labels[order]]
    axes.scatter(*u[order].T, s=size, c=colours, alpha=alpha, linewidths=0)
    outline = [withStroke(linewidth=3, foreground="white")]
    for digit, colour in enumerate(DIGIT_COLOURS):
        median = u[labels == digit].median(dim=0).values
        axes.text(*median, digit, weight="bold", ha="center", va="center", path_effects=outline)
        axes.plot([], [], "o", color=colour, label=digit)  # an opaque marker for the legend
    axes.add_patch(plt.Circle((0, 0), 2, fill=False, linestyle="--"))


def tile(images: Tensor, n_columns: int) -> Tensor:
    """Tiles images (N, 1, H, W), by rows from the top left: (N / n_columns * H, n_columns * W)."""
    rows = images.squeeze(1).unflatten(0, (-1, n_columns)).transpose(1, 2)  # (rows, H, columns, W)
    return rows.flatten(2).flatten(0, 1)


def draw_grid(images: Tensor, n_columns: int, title: str, extent: tuple | None = None) -> plt.Axes:
    """Draws images (N, 1, H, W) in [0, 1], white on black, row by row from the top left.

    `extent` holds the left, right, lower and upper coordinates; by default, they count cells.
    """
    picture = tile(images, n_columns).numpy()
    width = min(0.6 * n_columns, 6)  # inches
    figure = plt.figure(figsize=(width, width * picture.shape[0] / picture.shape[1]))
    axes = figure.add_axes((0, 0, 1, 1), title=title)
    cells = (0, n_columns, len(images) / n_columns, 0)
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1, aspect="auto", extent=extent or cells)
    if extent is None:
        axes.set(xticks=[], yticks=[])
        axes.tick_params(length=0)
    return axes


def save_figure(figure: plt.Figure, save_dir: Path, name: str) -> None:
    """Writes `name`.png, with identical bytes in every run, and prints its path."""
    how = {"bbox_inches": "tight", "metadata": {"Software": None}}
    save_file(save_dir / f"{name}.png", lambda file: figure.savefig(file, **how))
    plt.close(figure)


def save_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Lets `write` fill the file at `path`, then prints the path. Raises UserError."""
    write_file(path, write)
    print(path)
