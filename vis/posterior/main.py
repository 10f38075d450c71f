"""Where the encoder is wrong: the true posterior p(z|x), and the encoder's Gaussian, refined too.

python3 vis/posterior/main.py --model_params pretrained/vae_mnist_2d_dynamic.pth
python3 vis/posterior/main.py --model_params pretrained/vae_mnist_2d_dynamic.pth --summary

Without --image_index six of the first 100 test images are drawn: the two with the most modes, the
two with the largest KL divergence, and the two with the fewest modes. The number of modes is the
exponential of the entropy of their shares of the posterior. The plane is one of z, or with a flow
of u ~ N(0, I), of which the flow makes z.
"""

import math
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from utils import cli

import torch
from matplotlib.figure import SubFigure
from matplotlib.lines import Line2D
from torch import Tensor
from tqdm import tqdm

from data import to_float
from estimators import Gaussians, refined_posteriors
from model import VAE
from posterior import MODE_MASS, Posterior, effective_modes, exact_elbo, modes, true_posteriors
from vis.common import DIGIT_COLOURS, NotApplicable, Subject, make_parser, plt, save_figure

N_CHOSEN_FROM, N_SUMMARISED = 100, 1000  # test images, unless --n_images says otherwise
N_REFINING_STEPS = 100
LEVELS = [k**2 / 2 for k in range(5)]  # nats below the peak: a Gaussian's first four deviations
BLUE, RED, YELLOW, OCHRE = DIGIT_COLOURS[0], "#cc3311", "#eebb33", "#997700"
DOT = {"marker": "o", "markersize": 5, "markeredgecolor": "black", "markeredgewidth": 0.7}
LEGEND = {  # what each picture of draw_gap shows
    "true posterior p(z|x): one to four deviations": {"color": BLUE, "linewidth": 8},
    "encoder's q(z|x): mean, one and two deviations": {"color": RED, **DOT},
    f"the same after {N_REFINING_STEPS} refining steps": {"color": RED, "linestyle": "--"},
    "p's highest mode": {"color": YELLOW, "linestyle": "none", **DOT},
}


class Gap(NamedTuple):
    """How far the encoder is from the truth, for one image."""

    posterior: Posterior
    points: Tensor  # (M, 2): the modes, the highest first
    mass: Tensor  # (M,): their shares
    elbo: float  # nats

    @property
    def kl(self) -> float:
        """KL(q(z|x) || p(z|x)) in nats."""
        return self.posterior.log_evidence - self.elbo


def measure(subject: Subject, images: Tensor) -> list[Gap]:
    """The gaps of images (N, 1, 28, 28)."""
    elbos = exact_elbo(subject.model, images).tolist()
    found = zip(true_posteriors(subject.model, images), elbos, strict=True)
    bar = tqdm(found, "posteriors", len(images), leave=False, disable=None)
    return [Gap(posterior, *modes(posterior), elbo) for posterior, elbo in bar]


def choose(n_modes: list[float], kl: list[float]) -> list[int]:
    """Six images, no two the same: twice that with most modes, with largest KL, with fewest modes.

    Of equal ones the first.
    """
    chosen, indices = [], range(len(kl))
    rankings = (lambda i: -n_modes[i], lambda i: -kl[i], lambda i: n_modes[i])
    for ranking in 2 * rankings:
        chosen.append(min((i for i in indices if i not in chosen), key=ranking))
    return chosen


def rings(model: VAE, q: Gaussians) -> list[Tensor]:
    """The contours of one Gaussian, mu and logvar (1, 2), at one and two deviations: (200, 2)."""
    angle = torch.linspace(0, 2 * math.pi, 200)
    circle = torch.stack((angle.cos(), angle.sin()), dim=1)
    mu, std = q.mu.float(), torch.exp(0.5 * q.logvar.float())
    return [model.prior.to_normal(mu + std * radius * circle)[0] for radius in (1, 2)]


def draw_gap(figure: SubFigure, subject: Subject, index: int, gap: Gap) -> None:
    """The plane of one test image; below it the image and its two reconstructions."""
    plane, *strip = figure.subplot_mosaic("aaa;bcd", height_ratios=(3, 1)).values()
    mean, mode = subject.u[index], gap.points[0]
    encoder = Gaussians(subject.mu[[index]], subject.logvar[[index]])
    refined = refined_posteriors(subject.model, subject.images[[index]], encoder, N_REFINING_STEPS)
    solid, dashed = (rings(subject.model, q) for q in (encoder, refined))
    depth = gap.posterior.log_density.max() - gap.posterior.log_density
    plane.tricontourf(*gap.posterior.u.T, depth, LEVELS, cmap="Blues_r", vmin=-1, vmax=LEVELS[-1])
    for curve, style in zip(solid + dashed, ("-", "-", "--", "--"), strict=True):
        plane.plot(*curve.T, color=RED, linewidth=1.5, linestyle=style)
    plane.plot(*mean, color=RED, **DOT)
    plane.plot(*mode, color=YELLOW, **DOT)
    shown = torch.cat((gap.posterior.u[depth < LEVELS[-1]], *solid, *dashed))
    low, high = shown.amin(dim=0), shown.amax(dim=0)
    centre, half = (low + high) / 2, 0.55 * (high - low).max()
    (left, bottom), (right, top) = centre - half, centre + half
    plane.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
    plane.locator_params(nbins=4)
    plane.set_title(
        f"log p(x) = {gap.posterior.log_evidence:.1f}, ELBO = {gap.elbo:.1f}\n"
        f"KL(q || p(z|x)) = {gap.kl:.1f} nats, {effective_modes(gap.mass):.2f} modes",
        fontsize=10.5,
    )
    decoded = subject.decode_normal(torch.stack((mean, mode)))
    pictures = torch.cat((to_float(subject.images[index][None]), decoded))
    labels = ((f"image {index}", "black"), ("q's mean", RED), ("p's mode", OCHRE))
    for axes, picture, (label, colour) in zip(strip, pictures, labels, strict=True):
        axes.imshow(picture[0], cmap="gray", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[])
        axes.set_xlabel(label, color=colour)


def draw_gaps(subject: Subject, indices: list[int], gaps: list[Gap], save_dir: Path) -> None:
    """posterior.png: three images a row."""
    n_rows, n_columns = math.ceil(len(indices) / 3), min(3, len(indices))
    figure = plt.figure(figsize=(3.35 * n_columns, 4.5 * n_rows), layout="constrained")
    panels = figure.subfigures(n_rows, n_columns, squeeze=False).flat
    for panel, index, gap in zip(panels, indices, gaps, strict=False):
        draw_gap(panel, subject, index, gap)
    lines = [Line2D([], [], label=label, **look) for label, look in LEGEND.items()]
    figure.legend(handles=lines, loc="outside lower center", ncols=2, frameon=False, fontsize=10)
    save_figure(figure, save_dir, "posterior")


def draw_summary(gaps: list[Gap], name: str, save_dir: Path) -> None:
    """posterior_summary.png, and its numbers in a sentence."""
    kl = torch.tensor([gap.kl for gap in gaps])
    several = torch.tensor([(gap.mass > MODE_MASS).sum() > 1 for gap in gaps])
    worst = kl.sort(descending=True).values[: len(kl) // 10]
    text = (
        f"{several.float().mean():.1%} of {len(kl):,} test images have more than one mode\n"
        f"KL(q || p(z|x)): mean {kl.mean():.2f} nats, median {kl.median():.2f}, "
        f"{worst.sum() / kl.sum():.0%} of it in the worst tenth"
    )
    print(text)
    figure, axes = plt.subplots(figsize=(8, 4.5))
    low, high = kl.min().clamp(min=1e-3).log10().item(), kl.max().clamp(min=1e-2).log10().item()
    bins = torch.logspace(low, high, 40)
    shown = kl.clamp(bins[0], bins[-1])  # in the outermost bins: what is beyond, if by rounding
    parts, colours = (shown[~several].numpy(), shown[several].numpy()), (BLUE, YELLOW)
    labels = ("one mode", "more than one mode")
    axes.hist(parts, bins.numpy(), stacked=True, color=colours, label=labels)
    axes.axvline(kl.mean(), color=RED, label="mean")
    axes.set(xscale="log", xlabel="log p(x) - ELBO = KL(q || p(z|x)) in nats", ylabel="images")
    axes.set_title(f"{text}\n{name}")
    axes.legend(frameon=False)
    save_figure(figure, save_dir, "posterior_summary")


def main() -> None:
    parser = make_parser("Draws the true posterior of test images beside the encoder's.")
    what = parser.add_mutually_exclusive_group()
    index = cli.integer(0, 9999)
    what.add_argument("--image_index", type=index, nargs="+", help="draw these test images")
    what.add_argument("--summary", action="store_true", help="draw the KL of many images instead")
    sizes = cli.integer(10, 10_000)
    parser.add_argument("--n_images", type=sizes, help="look at the first so many test images")
    args = parser.parse_args()
    subject = Subject(args)
    if subject.mu.shape[1] != 2:
        raise NotApplicable("a true posterior on a grid needs a model of 2 latent dimensions.")
    n_images = args.n_images or (N_SUMMARISED if args.summary else N_CHOSEN_FROM)
    indices = args.image_index or list(range(n_images))
    gaps = measure(subject, subject.images[indices])
    if args.summary:
        draw_summary(gaps, subject.name, args.save_dir)
    elif args.image_index:
        draw_gaps(subject, indices, gaps, args.save_dir)
    else:
        chosen = choose([effective_modes(gap.mass) for gap in gaps], [gap.kl for gap in gaps])
        draw_gaps(subject, chosen, [gaps[index] for index in chosen], args.save_dir)


if __name__ == "__main__":
    cli.run(main)
