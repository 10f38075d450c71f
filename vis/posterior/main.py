"""Compares the true posteriors p(z|x) of test images with the encoder's Gaussians.

python3 vis/posterior/main.py --model_params pretrained/vae_mnist_2d_dynamic.pth
python3 vis/posterior/main.py --model_params pretrained/vae_mnist_2d_dynamic.pth --summary
"""

import math
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from model import VAE
from utils import cli
from vis.common import DIGIT_COLOURS, EncodedTestSet, make_parser, plt, save_figure, tile
from vis.posterior.true_posterior import Posterior, measure, modes

IMAGES = [126, 79, 0]  # in order: three posterior modes, a poor fit, a good fit
N_SUMMARISED = 1000  # number of test images for --summary
MIN_CELLS = 500  # minimum number of cells per drawn posterior
LEVELS = [k**2 / 2 for k in range(4)]  # nats below the peak, at 0 to 3 standard deviations
BLUE, RED, YELLOW, OCHRE = DIGIT_COLOURS[0], "#cc3311", "#eebb33", "#997700"
DOT = {"marker": "o", "markersize": 6, "markeredgecolor": "black", "markeredgewidth": 0.7}
LEGEND = {  # label -> style of its line and marker
    "true posterior p(z|x): 1 to 3 standard deviations": {"color": BLUE, "linewidth": 8},
    "encoder's q(z|x): mean, 1 and 2 standard deviations": {"color": RED, **DOT},
    "highest mode of p(z|x)": {"color": YELLOW, "linestyle": "none", **DOT},
}


def rings(model: VAE, mu: Tensor, logvar: Tensor) -> list[Tensor]:
    """Contours u (200, 2) of a Gaussian with mu and logvar (2,), at 1 and 2 standard deviations."""
    angle = torch.linspace(0, 2 * math.pi, 200)
    circle = torch.exp(0.5 * logvar) * torch.stack((angle.cos(), angle.sin()), dim=1)
    return [model.prior.to_normal(mu + radius * circle)[0] for radius in (1, 2)]


def draw(plane: plt.Axes, test_set: EncodedTestSet, index: int, posterior: Posterior) -> Tensor:
    """Draws p(u|x) and q(u|x) of an image. Returns the highest mode (2,) of p(u|x)."""
    depth = posterior.log_density.max() - posterior.log_density
    plane.tricontourf(*posterior.u.T, depth, LEVELS, cmap="Blues_r", vmin=-1, vmax=LEVELS[-1])
    for ring in rings(test_set.model, test_set.mu[index], test_set.logvar[index]):
        plane.plot(*ring.T, color=RED)
    top = posterior.u[depth.argmin()]
    plane.plot(*test_set.u[index], color=RED, **DOT)
    plane.plot(*top, color=YELLOW, **DOT)
    plane.set(box_aspect=1, **test_set.axis_labels)
    plane.margins(0.1)
    plane.locator_params(nbins=4)
    return top


def draw_images(test_set: EncodedTestSet, indices: list[int], folder: Path) -> None:
    """Draws posterior.png, with each image and its two reconstructions below its latent plane."""
    figure = plt.figure(figsize=(3 * len(indices), 4.9), layout="constrained")
    grid = figure.add_gridspec(2, len(indices), height_ratios=(3, 1))
    found, kl = measure(test_set, indices, MIN_CELLS)
    for i, index in enumerate(indices):
        plane, strip = (figure.add_subplot(grid[part, i]) for part in (0, 1))
        top = draw(plane, test_set, index, found[i])
        plane.set_title(f"q misses {kl[i]:.1f} nats", weight="bold")
        decoded = test_set.decode_normal(torch.stack((test_set.u[index], top)))
        pictures = torch.cat((test_set.images[[index]] / 255, decoded))
        strip.imshow(tile(pictures, 3), cmap="gray", vmin=0, vmax=1)
        strip.set_xticks([14, 42, 70], [f"image {index}", "mean of q", "mode of p"])
        strip.set_yticks([])
        strip.tick_params(length=0, labelsize=9)
        for label, colour in zip(strip.get_xticklabels(), ("black", RED, OCHRE), strict=True):
            label.set_color(colour)
    lines = [plt.Line2D([], [], label=label, **look) for label, look in LEGEND.items()]
    figure.legend(handles=lines, loc="outside lower center", ncols=2, frameon=False, fontsize=10)
    figure.suptitle(test_set.name)
    save_figure(figure, folder, "posterior")


def main() -> None:
    parser = make_parser("Draws the encoder's Gaussians over the true posteriors of test images.")
    add, index = parser.add_argument, cli.number(0, 9999)
    add("--image_index", type=index, nargs="+", default=IMAGES, help="test images to draw")
    add("--summary", action="store_true", help="summarise KL(q||p) over many images instead")
    args = parser.parse_args()
    test_set = EncodedTestSet(args, needs_plane=True)
    if args.summary:
        found, kl = measure(test_set, list(range(N_SUMMARISED)))
        several = sum(len(modes(posterior)) > 1 for posterior in found) / len(found)
        worst = kl.sort(descending=True).values[: len(kl) // 10].sum() / kl.sum()
        print(f"KL(q||p) is {kl.mean():.2f} nats on average, {kl.median():.2f} in the median;")
        print(f"the worst tenth of {len(kl):,} images accounts for {worst:.0%} of the total;")
        print(f"{several:.1%} of the posteriors have several modes")
    else:
        draw_images(test_set, args.image_index, args.save_dir)


if __name__ == "__main__":
    cli.run(main)
