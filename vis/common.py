"""What the figure scripts share: their flags, the loaded model and its test images, colours, writing a PNG."""

import sys
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws without a screen
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that a figure runs from any folder
import cli
from checkpoint import load_checkpoint
from data import fixed_binarization, load_mnist
from errors import UserError
from evaluate import elbo_terms, kl_of_dimensions
from model import VAE
from picture import tile

# A colour for each digit, the same in every figure, told apart by colour-blind readers on white and on black
# (Paul Tol's bright scheme, which ends at seven, and three more).
DIGIT_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#999999", "#ee7733", "#009988", "#8c564b")
INK = "#222222"
plt.rcParams.update({"savefig.dpi": 150, "font.size": 11, "axes.titlesize": 12, "text.color": INK, "axes.edgecolor": INK})


@dataclass(frozen=True)
class Subject:
    """What a figure is about: a model, and the test images as it was trained to see them, with their posteriors."""

    name: str  # for titles: "MNIST, mlp, 2 latent dimensions"
    model: VAE
    device: torch.device
    images: Tensor  # (N, 1, 28, 28) uint8
    labels: Tensor  # (N,)
    mu: Tensor  # (N, L)
    logvar: Tensor  # (N, L)
    kl: Tensor  # (L,), nats: what each dimension says about the image

    def decode(self, z: Tensor) -> Tensor:
        """z (..., L) -> the pixels' means (n, 1, 28, 28) in [0, 1] on the CPU."""
        with torch.inference_mode():
            return torch.sigmoid(self.model.decode(z.flatten(0, -2).float().to(self.device))).cpu()

    def from_normal(self, u: Tensor) -> Tensor:
        """u (..., L), quantiles of N(0, I), to z (..., L) of the model's prior, on the CPU."""
        with torch.inference_mode():
            return self.model.prior.from_normal(u.to(self.device)).cpu()

    def dimensions_by_kl(self) -> list[int]:
        """The latent dimensions, the one that says most about the image first."""
        return self.kl.argsort(descending=True).tolist()


def make_parser(description: str) -> ArgumentParser:
    """A parser with the flags of every figure: --model_params --save_dir --seed --batch_size --data_dir --device."""
    parser = cli.parser(description)
    parser.add_argument("--model_params", type=Path, required=True, help="a .pth file that train.py wrote")
    parser.add_argument("--save_dir", type=Path, default=Path("figures"), help="folder for what it draws")
    cli.add_common_flags(parser, batch_size=1000)
    parser.set_defaults(precision="fp32")
    return parser


def load_model(args: Namespace) -> tuple[VAE, dict, torch.device, str]:
    """What --model_params names: the model, its checkpoint, its device, and a name for titles. Raises UserError."""
    device = cli.pick_device(args.device)
    model, checkpoint = load_checkpoint(args.model_params, device)
    config = model.config
    name = f"{checkpoint['args']['dataset']}, {config.arch}, {config.latent_dim} latent dimension"
    name += "s" * (config.latent_dim > 1) + ", flow prior" * (config.prior == "flow")
    return model, checkpoint, device, name


def load_subject(args: Namespace) -> Subject:
    """The model that --model_params names, with its dataset's test images. Raises UserError."""
    model, checkpoint, device, name = load_model(args)
    precision = cli.pick_precision(args.precision, device)
    images, labels = load_mnist(args.data_dir, "test", checkpoint["args"]["dataset"])
    images = fixed_binarization(images, checkpoint["args"]["binarize"])
    no_noise = torch.zeros(len(images), model.config.latent_dim)
    terms = elbo_terms(model, images, no_noise, device, precision, args.batch_size)
    mu, logvar = terms["mu"], terms["logvar"]
    return Subject(name, model, device, images, labels, mu, logvar, kl_of_dimensions(mu, logvar, model.config.prior))


def show_images(axes: Axes, images: Tensor, n_columns: int, extent: tuple[float, float, float, float] | None = None) -> None:
    """Draws images (N, 1, 28, 28) in [0, 1] as a grid, row by row from the top left, white on black."""
    axes.imshow(tile(images, n_columns).numpy(), cmap="gray", vmin=0, vmax=1, extent=extent, interpolation="antialiased")
    if extent is None:
        axes.set_xticks([])
        axes.set_yticks([])


def save_figure(figure: Figure, save_dir: Path, name: str) -> None:
    """Writes `name`.png, the same bytes at every run, and prints its path. Raises UserError."""
    path = save_dir / f"{name}.png"
    try:
        save_dir.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, bbox_inches="tight", metadata={"Software": None})
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); choose another --save_dir.") from error
    print(path)
