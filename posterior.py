"""The true posterior p(z|x) of a model of two latent dimensions: on a grid, without an encoder.

Images are uint8 (N, 1, 28, 28) anywhere; figures are in nats. Everything is a function of
u ~ N(0, I), of which the prior makes z: with the standard normal u is z itself.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data import to_float
from estimators import COARSEST_GRID, GRID_LIMIT, log_joint
from loss import bernoulli_nll, gaussian_log_prob
from model import VAE

FINEST_POSTERIOR = 16_384  # cells along each axis: those of one posterior are few
POSTERIOR_TOLERANCE = 1e-3  # nats: fine enough when halving the cells moves log p(x) by less
POSTERIOR_DEPTH = 12.0  # nats below its peak: where p(z|x) may be cut off
POSTERIOR_CELLS = 400  # at least so many: enough for a smooth picture
NARROWEST = 0.007  # the deviation of the narrowest peak that the coarsest grid must not overlook
VALLEY = math.log(2)  # nats: two peaks are two modes if the density halves between them
MODE_MASS = 0.01  # the share of the posterior that a mode has at least, to be counted


class Posterior(NamedTuple):
    """The true p(u|x) of one image on small square cells, where it is not negligible.

    u ~ N(0, I) is what the prior makes z of: with the standard normal, z itself.
    """

    cells: Tensor  # (P, 2) int64: number along each axis
    u: Tensor  # (P, 2): their centres
    log_density: Tensor  # (P,) float64: log p(u|x) there, in nats
    step: float  # the side of a cell
    log_evidence: float  # log p(x), in nats


def adaptive_posterior(log_joint_at: Callable[[Tensor], Tensor], coarse: Tensor) -> Posterior:
    """Halves the cells of a coarse grid where p(u|x) is, until they are many and log p(x) is still.

    `log_joint_at` is log p(x, u) at points u (P, 2) -> (P,), and `coarse` (n, n) its values at the
    centres of n * n cells of the square of GRID_LIMIT. Of a Gaussian peak of deviation s, a cell
    that reaches up to POSTERIOR_DEPTH d has its centre at most (sqrt(d) + step / 2s)^2 nats below
    the peak: for the narrowest such cells are kept.
    """

    def log_sum(values: Tensor, n: int) -> float:
        return values.double().flatten().logsumexp(dim=0).item() + 2 * math.log(2 * GRID_LIMIT / n)

    def centres(cells: Tensor, n: int) -> Tensor:
        return (cells + 0.5) * (2 * GRID_LIMIT / n) - GRID_LIMIT

    n, values = len(coarse), coarse.flatten()
    cells = torch.cartesian_prod(torch.arange(n), torch.arange(n))
    quarters = torch.cartesian_prod(torch.arange(2), torch.arange(2))  # of a cell
    log_evidence = log_sum(values, n)
    change = abs(log_evidence - log_sum(coarse[::2, ::2], n // 2))
    inside = values > values.max() - POSTERIOR_DEPTH
    while n < FINEST_POSTERIOR and (
        change >= POSTERIOR_TOLERANCE or inside.sum() < POSTERIOR_CELLS
    ):
        depth = (math.sqrt(POSTERIOR_DEPTH) + GRID_LIMIT / n / NARROWEST) ** 2
        kept = cells[(values > values.max() - depth).cpu()]
        cells, n = (2 * kept[:, None] + quarters).flatten(0, 1), 2 * n
        values = log_joint_at(centres(cells, n).to(coarse.device))
        inside = values > values.max() - POSTERIOR_DEPTH
        before, log_evidence = log_evidence, log_sum(values, n)
        change = abs(log_evidence - before)
    cells, log_density = cells[inside.cpu()], values[inside].cpu().double() - log_evidence
    return Posterior(cells, centres(cells, n), log_density, 2 * GRID_LIMIT / n, log_evidence)


@torch.inference_mode()
def true_posteriors(
    model: VAE, images: Tensor, n_grid: int = COARSEST_GRID, batch_size: int = 500
) -> Iterator[Posterior]:
    """The true posterior of each image, for a model of two latent dimensions. No encoder is used.

    All images of a batch share what the decoder says on the coarse grid of `n_grid` * `n_grid`.
    """
    axis = (torch.arange(n_grid, device=model.device) + 0.5) * (2 * GRID_LIMIT / n_grid)
    points = torch.cartesian_prod(axis, axis) - GRID_LIMIT  # (n_grid * n_grid, 2)
    for batch in to_float(images.to(model.device)).flatten(1).split(batch_size):
        coarse = torch.cat([log_joint(model, batch, u) for u in points.split(4096)], dim=1)
        for x, values in zip(batch, coarse, strict=True):
            yield adaptive_posterior(
                lambda u, x=x: log_joint(model, x[None], u)[0], values.view(n_grid, n_grid)
            )


def peaks_and_passes(height: Tensor) -> tuple[Tensor, list[tuple[float, int, int]]]:
    """Where steepest ascent ends from each cell, and where the ways to two peaks part: (H, W).

    Peaks are flat indices (H * W,); passes are (height, peak, peak), the highest first. The cells
    of the edge are -inf.
    """
    _, up = F.max_pool2d(height[None], 3, stride=1, padding=1, return_indices=True)
    up = up.flatten()  # the highest cell around each
    while not up.equal(up[up]):
        up = up[up]
    passes = []
    for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):  # each pair of neighbours once
        there = up.view_as(height).roll(shift, (0, 1)).flatten()
        level = torch.minimum(height, height.roll(shift, (0, 1))).flatten()
        parted = (up != there) & level.isfinite()
        passes += zip(*(part[parted].tolist() for part in (level, up, there)), strict=True)
    return up, sorted(passes, reverse=True)


def modes(posterior: Posterior) -> tuple[Tensor, Tensor]:
    """The modes of a posterior, the highest first: their points u (M, 2), their shares of it (M,).

    Each cell belongs to the peak at the end of its steepest ascent. Where the ways to two peaks
    part, the lower is a mode of its own only if it stands at least VALLEY above that place.
    """
    low, high = posterior.cells.amin(dim=0), posterior.cells.amax(dim=0)
    n_rows, n_columns = (high - low + 3).tolist()  # with an edge
    place = ((posterior.cells - low + 1) * torch.tensor([n_columns, 1])).sum(dim=1)  # (P,)
    height = torch.full((n_rows * n_columns,), -math.inf, dtype=torch.float64)
    height[place] = posterior.log_density
    up, passes = peaks_and_passes(height.view(n_rows, n_columns))
    joined = {}  # peak -> the higher one of the same mode

    def mode(peak: int) -> int:
        while peak in joined:
            peak = joined[peak]
        return peak

    for level, *peaks in passes:
        lower, higher = sorted(map(mode, peaks), key=lambda peak: height[peak].item())
        if lower != higher and height[lower] - level < VALLEY:
            joined[lower] = higher
    owner = torch.tensor([mode(peak) for peak in up[place].tolist()])  # (P,)
    tops = owner.unique()
    tops = tops[height[tops].argsort(descending=True)]
    weights = posterior.log_density.exp() * posterior.step**2
    mass = torch.stack([weights[owner == top].sum() for top in tops])
    return torch.cat([posterior.u[place == top] for top in tops]), mass


def effective_modes(mass: Tensor) -> float:
    """exp of the entropy of the modes' shares (M,): 1 for one mode, M for M that are equal."""
    return torch.special.entr(mass / mass.sum()).sum().exp().item()


@torch.inference_mode()
def exact_elbo(model: VAE, images: Tensor, n_nodes: int = 16) -> Tensor:
    """E_q[log p(x, z) - log q(z|x)] by the Gauss-Hermite rule in two dimensions: (N,).

    `n_nodes` along each axis. log p(x) less this is KL(q(z|x) || p(z|x)), without any noise.
    """
    nodes, weights = map(torch.from_numpy, np.polynomial.hermite_e.hermegauss(n_nodes))
    eps = torch.cartesian_prod(nodes, nodes).float().to(model.device)  # (S, 2)
    weights = torch.outer(weights, weights).flatten() / (2 * math.pi)  # (S,), of sum 1
    elbo = torch.empty(len(images), dtype=torch.float64)
    for i, image in enumerate(images):
        x = to_float(image[None].to(model.device))
        mu, logvar = model.encode(x)  # (1, 2)
        z = model.reparameterize(mu, logvar, eps)  # (S, 2)
        log_w = model.prior.log_prob(z) - gaussian_log_prob(z, mu, logvar)
        log_w -= bernoulli_nll(model.decode(z), x)  # (S,)
        elbo[i] = (weights * log_w.cpu().double()).sum()
    return elbo
