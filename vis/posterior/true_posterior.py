"""The true posterior p(z|x) in two latent dimensions, and the KL divergence of q(z|x) from it.

The code computes p(u|x), where u ~ N(0, I) and the prior maps u to z. Without a flow, u is z. Log
densities are in nats. Models and images are on the CPU.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from estimators import GRID_LIMIT, Gaussians, elbo_terms, log_joint
from model import VAE
from utils.photos import pieces  # connected cells, found by a flood fill
from vis.common import EncodedTestSet

COARSEST, FINEST = 128, 16_384  # cells along each axis
FEW_CELLS = 100  # minimum number of cells per posterior that is not drawn
TOLERANCE = 0.03  # nats; the last halving of the step must change log p(x) by less
DEPTH = 10.0  # a posterior is cut off this many nats below its peak
NARROWEST = 0.006  # no grid may miss peaks with at least this standard deviation
REGION_MASS, MODE_MASS = 0.9, 0.01  # mass of the modes' region; minimum mass of one mode
N_NODES = 10  # Gauss-Hermite nodes along each axis of z
CHUNK = 2048  # points that are decoded at once


class Posterior(NamedTuple):
    """p(u|x) of one image, on the small square cells where it is not negligible."""

    cells: Tensor  # (P, 2) int64: indices of the cells along each axis
    u: Tensor  # (P, 2): the cells' centres
    log_density: Tensor  # (P,) float64: log p(u|x) at the centres
    step: float  # side length of a cell
    log_evidence: float  # log p(x)


def centres(cells: Tensor, n: int) -> Tensor:
    """The centres u of `cells` (..., 2) in the n * n grid."""
    return (cells + 0.5) * (2 * GRID_LIMIT / n) - GRID_LIMIT


def evaluate(model: VAE, x: Tensor, cells: dict[int, Tensor], n: int) -> dict[int, Tensor]:
    """log p(x, u) of each image at the centres of its `cells` in the n * n grid: (P, 2) -> (P,).

    A cell that several images share is decoded only once.
    """
    sizes = [len(own) for own in cells.values()]
    image = torch.tensor([*cells]).repeat_interleave(torch.tensor(sizes))  # one per image-cell pair
    pairs = torch.cat([*cells.values()])
    shared, column = (pairs @ torch.tensor([n, 1])).unique(return_inverse=True)
    values = torch.empty(len(image))
    chunks = tqdm(shared.split(CHUNK), f"{n} cells per axis", leave=False, disable=None)
    for number, chunk in enumerate(chunks):
        (here,) = (column // CHUNK == number).nonzero(as_tuple=True)  # pairs with a cell in `chunk`
        images, row = image[here].unique(return_inverse=True)
        u = centres(torch.stack((chunk // n, chunk % n), dim=1), n)
        values[here] = log_joint(model, x[images], u)[row, column[here] % CHUNK]
    return dict(zip(cells, values.split(sizes), strict=True))


@torch.no_grad()
def true_posteriors(model: VAE, images: Tensor, min_cells: int) -> list[Posterior]:
    """p(u|x) of images (N, 1, 28, 28) uint8, on cells quartered until small enough."""
    x, n, found = images.flatten(1) / 255, COARSEST, [None] * len(images)  # x (N, 784)
    every = torch.cartesian_prod(torch.arange(n), torch.arange(n))
    quarters = torch.cartesian_prod(torch.arange(2), torch.arange(2))  # offsets within a cell
    table = torch.cat([log_joint(model, x, u) for u in centres(every, n).split(CHUNK)], dim=1)
    cells, values = dict.fromkeys(range(len(x)), every), dict(enumerate(table))
    log_p = dict.fromkeys(cells, -math.inf)
    while True:
        step, before, log_p, next_cells = 2 * GRID_LIMIT / n, log_p, {}, {}
        # Past `kept_depth`, cells have points within DEPTH only at peaks narrower than NARROWEST.
        kept_depth = (math.sqrt(DEPTH) + step / 2 / NARROWEST) ** 2
        for i, own in cells.items():
            log_p[i] = values[i].double().logsumexp(dim=0).item() + 2 * math.log(step)
            depth = values[i].max() - values[i]
            inside, kept = depth < DEPTH, own[depth < kept_depth]
            is_done = inside.sum() >= min_cells and abs(log_p[i] - before[i]) < TOLERANCE
            if is_done or n == FINEST:
                density, own = values[i][inside].double() - log_p[i], own[inside]
                found[i] = Posterior(own, centres(own, n), density, step, log_p[i])
            else:
                next_cells[i] = (2 * kept[:, None] + quarters).flatten(0, 1)
        if not next_cells:
            return found
        cells, n = next_cells, 2 * n
        values = evaluate(model, x, cells, n)


def modes(posterior: Posterior) -> list[float]:
    """The masses of the modes: connected pieces of the smallest region that holds REGION_MASS.

    Pieces with a mass below MODE_MASS are left out.
    """
    mass = posterior.log_density.exp() * posterior.step**2
    order = mass.argsort(descending=True)
    region = order[: (mass[order].cumsum(dim=0) < REGION_MASS * mass.sum()).sum() + 1]
    cells = posterior.cells[region]
    mass_of = dict(zip(map(tuple, cells.tolist()), mass[region].tolist(), strict=True))
    masses = [sum(map(mass_of.get, piece)) for piece in pieces(cells)]
    return [total for total in masses if total >= MODE_MASS]


def exact_elbo(model: VAE, images: Tensor, q: Gaussians) -> Tensor:
    """The ELBO (N,), computed with Gauss-Hermite quadrature rather than random samples."""
    nodes, weights = map(torch.from_numpy, np.polynomial.hermite_e.hermegauss(N_NODES))
    weights = torch.outer(weights, weights).flatten() / (2 * math.pi)  # they sum to 1
    neg_elbo = torch.zeros(len(images), dtype=torch.float64)
    for eps, weight in zip(torch.cartesian_prod(nodes, nodes).float(), weights, strict=True):
        recon, kl, _ = elbo_terms(model, images, q, eps.expand(len(images), 2))
        neg_elbo += weight * (recon + kl)
    return -neg_elbo


def measure(
    test_set: EncodedTestSet, indices: list[int], min_cells: int = FEW_CELLS
) -> tuple[list[Posterior], Tensor]:
    """The true posteriors of the N test images `indices`, and KL(q(z|x) || p(z|x)) (N,) in nats."""
    images, q = test_set.images[indices], Gaussians(test_set.mu[indices], test_set.logvar[indices])
    found = true_posteriors(test_set.model, images, min_cells)
    log_evidence = torch.tensor([posterior.log_evidence for posterior in found])
    return found, log_evidence - exact_elbo(test_set.model, images, q)
