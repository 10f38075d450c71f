"""What the figures share: flags, a model and its test images, colours, grids of digits, files."""

import io
from argparse import ArgumentParser, Namespace
from pathlib import Path

from utils import cli
from utils.checkpoint import load_checkpoint
from utils.cli import UserError
from utils.device import pick_device, pick_precision
from utils.images import cannot_write, tile

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from data import fixed_binarization, load_mnist
from estimators import kl_of_dimensions, posteriors
from model import VAE

# A colour for each digit, the same in every figure. Colour-blind readers can tell them apart, on
# white and on black: Paul Tol's bright scheme, which ends at seven, and three more.
BRIGHT = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#999999")
DIGIT_COLOURS = (*BRIGHT, "#ee7733", "#009988", "#8c564b")
plt.switch_backend("Agg")  # draws without a screen
plt.rcParams.update({"savefig.dpi": 150, "font.size": 11, "axes.titlesize": 12})


class NotApplicable(UserError):
    """The figure cannot be drawn of this kind of model."""


def make_parser(description: str) -> ArgumentParser:
    """A parser with --model_params, --save_dir, --seed and the common flags."""
    parser = cli.parser(description)
    add = parser.add_argument
    add("--model_params", type=Path, required=True, help="a .pth file that train.py wrote")
    add("--save_dir", type=Path, default=Path("figures"), help="folder for what it draws")
    cli.add_seed_flag(parser)
    cli.add_common_flags(parser, batch_size=1000)
    parser.set_defaults(precision="fp32")
    return parser


def load_model(args: Namespace) -> tuple[VAE, dict, str]:
    """What --model_params names: the model, its checkpoint, a name for titles. Raises UserError."""
    model, checkpoint = load_checkpoint(args.model_params, pick_device(args.device))
    config = model.config
    name = f"{checkpoint['args']['dataset']}, {config.arch}, {config.latent_dim}-dimensional z"
    return model, checkpoint, name + ", flow prior" * (config.prior == "flow")


class Subject:
    """The model that --model_params names, on the CPU, and its posteriors of the test images.

    Raises UserError.
    """

    def __init__(self, args: Namespace):
        model, checkpoint, self.name = load_model(args)
        images, self.labels = load_mnist(args.data_dir, "test", checkpoint["args"]["dataset"])
        self.binarize = checkpoint["args"]["binarize"]
        images = fixed_binarization(images, self.binarize)
        precision = pick_precision(args.precision, model.device)
        mu, logvar = posteriors(model, images, precision, args.batch_size)
        prior = model.config.prior
        self.images = images  # (N, 1, 28, 28) uint8, as the model was trained to see them
        self.model = model.cpu().requires_grad_(False)
        self.mu, self.logvar = mu.float(), logvar.float()  # (N, L)
        self.u, _ = self.model.prior.to_normal(self.mu)  # (N, L): mu unless the prior is a flow
        self.symbol = "u" if prior == "flow" else "z"  # of a coordinate of u, in labels
        self.kl = kl_of_dimensions(mu, logvar, prior)  # (L,), nats
        self.by_kl = self.kl.argsort(descending=True).tolist()  # which says most about the image

    def decode(self, z: Tensor) -> Tensor:
        """z (..., L) -> the pixels' means (n, 1, 28, 28) in [0, 1]."""
        return torch.sigmoid(self.model.decode(z.flatten(0, -2).float()))

    def decode_normal(self, u: Tensor) -> Tensor:
        """The same of u ~ N(0, I), of which the prior makes z."""
        return self.decode(self.model.prior.from_normal(u))

    def plane(self) -> list[int]:
        """The two dimensions of a figure with two axes. Raises NotApplicable if z has only one."""
        if len(self.kl) == 1:
            raise NotApplicable("it needs at least 2 latent dimensions; use vis/traversal.")
        return [0, 1] if len(self.kl) == 2 else self.by_kl[:2]


def plane_grid(coordinates: Tensor) -> Tensor:
    """Points of a plane, row by row from the top left as one looks at a plot: (n,) -> (n, n, 2)."""
    return torch.stack(torch.meshgrid(coordinates, coordinates.flip(0), indexing="xy"), dim=-1)


def scatter_digits(axes: Axes, points: Tensor, labels: Tensor, size: float, alpha: float) -> None:
    """Dots at `points` (N, 2) in the colours of their digits, `labels` (N,)."""
    for digit, colour in enumerate(DIGIT_COLOURS):
        x, y = points[labels == digit].T
        axes.scatter(x, y, s=size, color=colour, alpha=alpha, linewidths=0, label=str(digit))


def draw_grid(images: Tensor, n_columns: int, title: str, extent: tuple | None = None) -> Axes:
    """A figure of images (N, 1, H, W) in [0, 1], row by row from the top left, white on black.

    `extent`: the coordinates of the left, right, lower and upper edge; without it, cell by cell.
    """
    picture = tile(images, n_columns).numpy()
    width = min(0.75 * n_columns, 8)  # inches
    figure = plt.figure(figsize=(width, width * picture.shape[0] / picture.shape[1]))
    axes = figure.add_axes((0, 0, 1, 1), title=title)
    cells = (0, n_columns, len(images) / n_columns, 0)
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1, aspect="auto", extent=extent or cells)
    if extent is None:
        axes.set(xticks=[], yticks=[])
    return axes


def save_figure(figure: Figure, save_dir: Path, name: str) -> None:
    """Writes `name`.png, the same bytes at every run, and prints its path. Raises UserError."""
    content = io.BytesIO()
    figure.savefig(content, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    save_file(save_dir / f"{name}.png", content.getvalue())


def save_file(path: Path, content: bytes) -> None:
    """Writes a file and prints its path. Raises UserError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise cannot_write(path, error) from error
    print(path)
