"""The true posterior p(z|x) of test images beside the encoder's Gaussian, which is refined too.

python3 vis/posterior/main.py --model_params pretrained/vae_mnist_2d_dynamic.pth
python3 vis/posterior/main.py --model_params pretrained/vae_mnist_2d_dynamic.pth --summary

Without --image_index it draws six of the first 100 test images by KL(q(z|x) || p(z|x)): from left
to right two with the largest, two around the median, and two with the smallest.
"""

import math
import sys
from pathlib import Path

import torch
from matplotlib.figure import SubFigure
from matplotlib.lines import Line2D
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from estimators import Gaussians, refined_posteriors
from model import VAE
from utils import cli
from utils.cli import number
from vis.common import DIGIT_COLOURS, EncodedTestSet, NotApplicable, make_parser, plt, save_figure
from vis.posterior.true_posterior import Posterior, exact_elbo, modes, true_posteriors

N_CHOSEN_FROM, N_SUMMARISED = 100, 1000  # test images, unless --n_images says otherwise
MIN_CELLS, FEW_CELLS = 400, 100  # of a posterior that is drawn, that is only measured
N_REFINING_STEPS = 100
LEVELS = [k**2 / 2 for k in range(4)]  # nats below the peak: 0 to 3 standard deviations
BLUE, RED, YELLOW, OCHRE = DIGIT_COLOURS[0], "#cc3311", "#eebb33", "#997700"
DOT = {"marker": "o", "markersize": 5, "markeredgecolor": "black", "markeredgewidth": 0.7}
LEGEND = {  # label -> look in each plane
    "true posterior p(z|x): 1 to 3 standard deviations": {"color": BLUE, "linewidth": 8},
    "encoder's q(z|x): mean, 1 and 2 standard deviations": {"color": RED, **DOT},
    f"q(z|x) after {N_REFINING_STEPS} refining steps": {"color": RED, "linestyle": "--"},
    "highest mode of p(z|x)": {"color": YELLOW, "linestyle": "none", **DOT},
}


def measure(
    test_set: EncodedTestSet, indices: list[int], min_cells: int
) -> tuple[list[Posterior], Tensor]:
    """The true posteriors of these test images, and KL(q(z|x) || p(z|x)) in nats (N,)."""
    images, q = test_set.images[indices], Gaussians(test_set.mu[indices], test_set.logvar[indices])
    found = true_posteriors(test_set.model, images, min_cells)
    elbo = exact_elbo(test_set.model, images, q)
    return found, torch.tensor([posterior.log_evidence for posterior in found]) - elbo


def choose(kl: Tensor) -> list[int]:
    """The images with largest, median, smallest KL, then those next to them."""
    order, middle = kl.argsort(descending=True, stable=True).tolist(), len(kl) // 2
    return [order[place] for place in (0, middle - 1, -1, 1, middle, -2)]


def rings(model: VAE, mu: Tensor, logvar: Tensor) -> list[Tensor]:
    """Contours u (200, 2) of one Gaussian, mu and logvar (2,), at 1 and 2 standard deviations."""
    angle = torch.linspace(0, 2 * math.pi, 200)
    circle = torch.stack((angle.cos(), angle.sin()), dim=1)
    std = torch.exp(0.5 * logvar)
    return [model.prior.to_normal(mu + std * radius * circle)[0] for radius in (1, 2)]


def draw(
    figure: SubFigure, test_set: EncodedTestSet, index: int, posterior: Posterior, kl: float
) -> None:
    """The plane of one test image; below it the image and its two reconstructions."""
    plane, *strip = figure.subplot_mosaic("aaa;bcd", height_ratios=(3, 1)).values()
    (tops, mass), mean = modes(posterior), test_set.u[index]
    depth = posterior.log_density.max() - posterior.log_density
    plane.tricontourf(*posterior.u.T, depth, LEVELS, cmap="Blues_r", vmin=-1, vmax=LEVELS[-1])
    q = Gaussians(test_set.mu[[index]], test_set.logvar[[index]])
    image = test_set.images[[index]]
    refined = refined_posteriors(test_set.model, image, q, N_REFINING_STEPS)
    for (mu, logvar), style in ((q, "-"), (refined, "--")):
        for ring in rings(test_set.model, mu[0], logvar[0]):
            plane.plot(*ring.T, color=RED, linewidth=1.5, linestyle=style)
    plane.plot(*mean, color=RED, **DOT)
    plane.plot(*tops[0], color=YELLOW, **DOT)
    plane.set_aspect("equal", adjustable="datalim")
    plane.locator_params(nbins=4)
    log_p, several = posterior.log_evidence, "s" * (len(mass) > 1)
    text = f"log p(x) = {log_p:.1f}, ELBO = {log_p - kl:.1f}\n"
    text += f"KL(q || p(z|x)) = {kl:.1f} nats, {len(mass)} mode{several}"
    plane.set_title(text, fontsize=10.5)
    decoded = test_set.decode_normal(torch.stack((mean, tops[0])))
    pictures = torch.cat((image / 255, decoded))
    labels = ((f"image {index}", "black"), ("mean of q", RED), ("mode of p", OCHRE))
    for axes, picture, (label, colour) in zip(strip, pictures, labels, strict=True):
        axes.imshow(picture[0], cmap="gray", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[])
        axes.set_xlabel(label, color=colour)


def draw_images(test_set: EncodedTestSet, indices: list[int], folder: Path) -> None:
    """posterior.png: three images per row."""
    n_rows, n_columns = math.ceil(len(indices) / 3), min(3, len(indices))
    figure = plt.figure(figsize=(3.35 * n_columns, 4.5 * n_rows), layout="constrained")
    panels = figure.subfigures(n_rows, n_columns, squeeze=False).flat
    found, kl = measure(test_set, indices, MIN_CELLS)
    for panel, *image in zip(panels, indices, found, kl.tolist(), strict=False):
        draw(panel, test_set, *image)
    lines = [Line2D([], [], label=label, **look) for label, look in LEGEND.items()]
    figure.legend(handles=lines, loc="outside lower center", ncols=2, frameon=False, fontsize=10)
    save_figure(figure, folder, "posterior")


def draw_summary(several: Tensor, kl: Tensor, name: str, folder: Path) -> None:
    """posterior_summary.png of the images' KL (N,), in a second colour where `several` (N,) modes.

    Prints its numbers too.
    """
    worst = kl.sort(descending=True).values[: len(kl) // 10]
    text = (
        f"{several.float().mean():.1%} of {len(kl):,} test images have more than one mode\n"
        f"KL(q || p(z|x)): mean {kl.mean():.2f} nats, median {kl.median():.2f}, "
        f"{worst.sum() / kl.sum():.0%} of it in the worst tenth"
    )
    print(text)
    figure, axes = plt.subplots(figsize=(8, 4.5))
    low, high = kl.min().clamp(min=1e-3).log10().item(), kl.max().clamp(min=1e-2).log10().item()
    bins = torch.logspace(low, high, 40, dtype=kl.dtype)
    shown = kl.clamp(bins[0], bins[-1])  # rounding may put an image just outside
    parts, labels = (shown[~several].numpy(), shown[several].numpy()), ("one mode", "several modes")
    axes.hist(parts, bins.numpy(), stacked=True, color=(BLUE, YELLOW), label=labels)
    axes.axvline(kl.mean(), color=RED, label="mean")
    axes.set(xscale="log", xlabel="log p(x) - ELBO = KL(q || p(z|x)) in nats", ylabel="images")
    axes.set_title(f"{text}\n{name}")
    axes.legend(frameon=False)
    save_figure(figure, folder, "posterior_summary")


def main() -> None:
    parser = make_parser("Draws the true posterior of test images beside the encoder's.")
    what = parser.add_mutually_exclusive_group()
    index, sizes = number(0, 9999), number(10, 1000)
    what.add_argument("--image_index", type=index, nargs="+", help="draw these test images")
    what.add_argument("--summary", action="store_true", help="draw the KL of many images instead")
    parser.add_argument("--n_images", type=sizes, help="use the first N test images")
    args = parser.parse_args()
    test_set = EncodedTestSet(args)
    if test_set.mu.shape[1] != 2:
        raise NotApplicable("a true posterior on a grid needs a model of 2 latent dimensions.")
    if args.image_index:
        draw_images(test_set, args.image_index, args.save_dir)
        return
    n_images = args.n_images or (N_SUMMARISED if args.summary else N_CHOSEN_FROM)
    found, kl = measure(test_set, list(range(n_images)), FEW_CELLS)
    if args.summary:
        several = torch.tensor([len(modes(posterior)[0]) > 1 for posterior in found])
        draw_summary(several, kl, test_set.name, args.save_dir)
    else:
        draw_images(test_set, choose(kl), args.save_dir)


if __name__ == "__main__":
    cli.run(main)
