"""Trains a model with two latent dimensions and films its latent space.

python3 vis/training/main.py

Left: the posterior means of the first 2,000 test images. Right: the decoded plane.
With a flow, the axes show u = f(z). The -ELBO is averaged over the first 1,000 validation images.
"""

import io
import math
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from data import binarize, load_mnist
from estimators import posteriors
from model import VAE
from train import AVERAGE_EVERY, Run, build, parse_flags, train_one_epoch, validate
from utils import cli
from utils.cli import number
from vis.common import NotApplicable, plane_grid, plt, save_file, scatter_digits, tile

N_TEST, N_VAL = 2000, 1000  # test and validation images per frame
N_MOMENTS = 80  # log-spaced times; some coincide, so the film has about 50 frames
N_CELLS, LIMIT = 13, 3.5  # digits along each axis of the plane, and its largest coordinate
FRAME_MS, LAST_FRAME_MS, N_COLOURS = 100, 2000, 32  # few colours, for a file below 3 MB


def film(run: Run, images: Tensor, args: Namespace) -> Iterator[tuple[int, VAE]]:
    """Trains on `images`. At some steps, yields the step and the model with averaged weights."""
    n_steps, step = args.n_epochs * math.ceil(len(images) / args.batch_size), 0
    powers = ((n_steps / AVERAGE_EVERY) ** (i / N_MOMENTS) for i in range(N_MOMENTS))
    watched = {n_steps, *(AVERAGE_EVERY * round(power) for power in powers)}
    yield step, run.average
    for epoch in tqdm(range(1, args.n_epochs + 1), "training", leave=False, disable=None):
        for _ in train_one_epoch(run.model, run.average, run.optimizer, images, args, epoch):
            step += 1
            if step in watched:
                yield step, run.average


@torch.no_grad()
def see(model: VAE, images: Tensor) -> tuple[Tensor, Tensor]:
    """The posterior means u (N, 2) of images (N, 1, 28, 28), and the decoded plane."""
    u, _ = model.prior.to_normal(posteriors(model, images).mu)
    centres = (torch.arange(N_CELLS) + 0.5) * (2 * LIMIT / N_CELLS) - LIMIT
    z = model.prior.from_normal(plane_grid(centres).flatten(0, 1).to(model.device))
    return u.cpu(), torch.sigmoid(model.decode(z)).cpu()


def draw(u: Tensor, plane: Tensor, labels: Tensor, titles: list[str], symbol: str) -> Image.Image:
    """A frame of the film: both panels, with their titles and fixed axis limits."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.3, 4.6), sharey=True)
    figure.subplots_adjust(left=0.07, right=0.99, bottom=0.11, top=0.86, wspace=0.04)
    scatter_digits(left, u, labels, size=6, alpha=1)
    left.legend(ncols=10, loc=(0, 1.07), frameon=False, handletextpad=-0.4)
    right.imshow(tile(plane, N_CELLS), "gray", vmin=0, vmax=1, extent=(-LIMIT, LIMIT) * 2)
    for axes, title in zip((left, right), titles, strict=True):
        axes.set(xlim=(-LIMIT, LIMIT), ylim=(-LIMIT, LIMIT), aspect="equal", title=title)
        axes.set_xlabel(f"${symbol}_1$")
    left.set_ylabel(f"${symbol}_2$")
    content = io.BytesIO()
    figure.savefig(content, dpi=100)
    plt.close(figure)
    return Image.open(content).convert("RGB")


def main() -> None:
    parser = cli.parser("Trains a model and films its latent space. Also takes train.py's flags.")
    parser.add_argument("--n_epochs", type=number(1), default=9, help="epochs of training")
    parser.add_argument("--save_dir", type=Path, default="figures", help="folder for the film")
    own, others = parser.parse_known_args()
    args = parse_flags([f"--n_epochs={own.n_epochs}", *others])
    if args.latent_dim != 2 or args.resume:
        raise NotApplicable("a film needs --latent_dim 2 and does not take --resume.")
    train = load_mnist(args.data_dir, "train", args.dataset)[0][: args.n_train].to(args.device)
    val = binarize(load_mnist(args.data_dir, "val", args.dataset)[0], args.binarize)[:N_VAL]
    test, labels = load_mnist(args.data_dir, "test", args.dataset)
    test = binarize(test, args.binarize)[:N_TEST]

    pictures, symbol = [], "u" if args.prior == "flow" else "z"
    for step, model in film(build(args, train), train, args):
        epoch = step / math.ceil(len(train) / args.batch_size)
        neg_elbo = validate(model, val, args)["val_neg_elbo"]
        titles = [f"step {step:,}, epoch {epoch:.1f}", f"validation -ELBO {neg_elbo:.1f} nats"]
        pictures.append(draw(*see(model, test), labels[:N_TEST], titles, symbol))
    palette = pictures[-1].quantize(N_COLOURS, Image.Quantize.MAXCOVERAGE)
    pictures = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in pictures]
    durations = [FRAME_MS] * (len(pictures) - 1) + [LAST_FRAME_MS]
    how = {"save_all": True, "append_images": pictures[1:], "duration": durations, "loop": 0}
    save_file(own.save_dir / "training.gif", lambda file: pictures[0].save(file, "GIF", **how))


if __name__ == "__main__":
    cli.run(main)
