"""The true posterior p(z|x) of a model with two latent dimensions, without an encoder.

Everything is a function of u ~ N(0, I), which the prior maps to z; without a flow u is z. Log
densities are in nats; models and images are on the CPU.
"""

import math
from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from estimators import GRID_LIMIT, Gaussians, elbo_terms, log_joint
from model import VAE

COARSEST, FINEST = 128, 16_384  # cells along each axis
TOLERANCE = 3e-3  # nats: cells are small enough if halving them moves log p(x) by less
DEPTH = 10.0  # nats below its peak, where a posterior is cut off
NARROWEST = 0.006  # standard deviation of the narrowest peak that no grid may overlook
REGION_MASS, MODE_MASS = 0.9, 0.01  # of the posterior: the region of all modes, the smallest mode
CHUNK = 2048  # points that are decoded at once
LogJoint = Callable[[Tensor, Tensor], Tensor]  # numbers of images (B,), u (P, 2) -> (B, P)


class Posterior(NamedTuple):
    """p(u|x) of one image on small square cells, where it is not negligible."""

    cells: Tensor  # (P, 2) int64: numbers of the cells along each axis
    u: Tensor  # (P, 2): their centres
    log_density: Tensor  # (P,) float64: log p(u|x) at the centres
    step: float  # side of a cell
    log_evidence: float  # log p(x)


def evaluate(log_joint_at: LogJoint, image: Tensor, cells: Tensor, n: int) -> Tensor:
    """log p(x, u) of P pairs of an image (P,) and a cell (P, 2) of the grid with n * n cells: (P,).

    A cell that several images share is decoded once.
    """
    images, row = image.unique(return_inverse=True)
    shared, column = (n * cells[:, 0] + cells[:, 1]).unique(return_inverse=True)
    values = torch.empty(len(image))
    chunks = tqdm(shared.split(CHUNK), f"{n} cells per axis", leave=False, disable=None)
    for number, chunk in enumerate(chunks):
        u = centres(torch.stack((chunk // n, chunk % n), dim=1), n)
        (pairs,) = (column // CHUNK == number).nonzero(as_tuple=True)
        values[pairs] = log_joint_at(images, u)[row[pairs], column[pairs] % CHUNK]
    return values


def centres(cells: Tensor, n: int) -> Tensor:
    """The points u of cells (..., 2) of the grid with n * n cells."""
    return (cells + 0.5) * (2 * GRID_LIMIT / n) - GRID_LIMIT


def kept_depth(n: int) -> float:
    """Nats below the peak at the centre of a cell that somewhere still reaches DEPTH.

    The bound holds for Gaussian peaks with a standard deviation of at least NARROWEST.
    """
    return (math.sqrt(DEPTH) + GRID_LIMIT / n / NARROWEST) ** 2


@torch.no_grad()
def adaptive_posteriors(log_joint_at: LogJoint, n_images: int, min_cells: int) -> list[Posterior]:
    """The posteriors of N images, whose cells are halved until they are small and many enough."""
    n, found = COARSEST, [None] * n_images
    quarters = torch.cartesian_prod(torch.arange(2), torch.arange(2))  # of a cell
    cells = torch.cartesian_prod(torch.arange(n), torch.arange(n))
    chunks = centres(cells, n).split(CHUNK)
    table = torch.cat([log_joint_at(torch.arange(n_images), u) for u in chunks], dim=1)
    image, place = (table > table.amax(dim=1, keepdim=True) - kept_depth(n)).nonzero(as_tuple=True)
    cells, values = cells[place], table[image, place]  # of P pairs of an image and a cell
    log_evidence = torch.full((n_images,), -math.inf, dtype=torch.float64)
    while True:
        peak = torch.full((n_images,), -math.inf).scatter_reduce(0, image, values, "amax")
        depth, step, before = peak[image] - values, 2 * GRID_LIMIT / n, log_evidence
        total = torch.zeros_like(before).index_add(0, image, torch.exp(-depth.double()))
        log_evidence = peak + total.log() + 2 * math.log(step)  # (N,)
        inside, counts = depth < DEPTH, image.bincount(minlength=n_images)
        is_done = image[inside].bincount(minlength=n_images) >= min_cells
        is_done &= (log_evidence - before).abs() < TOLERANCE
        is_done = (is_done | torch.tensor(n == FINEST)) & (counts > 0)
        for i in is_done.nonzero().flatten().tolist():
            mine, log_p = inside & (image == i), log_evidence[i].item()
            density = values[mine].double() - log_p
            found[i] = Posterior(cells[mine], centres(cells[mine], n), density, step, log_p)
        kept = (depth < kept_depth(n)) & ~is_done[image]
        if not kept.any():
            return found
        image, n = image[kept].repeat_interleave(4), 2 * n
        cells = (2 * cells[kept][:, None] + quarters).flatten(0, 1)
        values = evaluate(log_joint_at, image, cells, n)


def true_posteriors(model: VAE, images: Tensor, min_cells: int) -> list[Posterior]:
    """The true posteriors of images (N, 1, 28, 28) uint8, with at least `min_cells` cells each."""
    x = images.flatten(1) / 255  # (N, 784)
    return adaptive_posteriors(lambda i, u: log_joint(model, x[i], u), len(x), min_cells)


def modes(posterior: Posterior) -> tuple[Tensor, Tensor]:
    """The modes, the highest first: their highest points u (M, 2), their shares of the mass (M,).

    A mode is a connected piece of the smallest region with REGION_MASS of the posterior's mass, if
    it has at least MODE_MASS.
    """
    mass = posterior.log_density.exp() * posterior.step**2
    order = mass.argsort(descending=True)
    region = order[: (mass[order].cumsum(dim=0) < REGION_MASS * mass.sum()).sum() + 1]
    left = dict(zip(map(tuple, posterior.cells[region].tolist()), region.tolist(), strict=True))
    pieces = []
    while left:
        front = [next(iter(left))]  # the highest cell that is left
        piece = [left.pop(front[0])]
        while front:
            row, column = front.pop()
            around = product((row - 1, row, row + 1), (column - 1, column, column + 1))
            reached = [cell for cell in around if cell in left]
            front += reached
            piece += map(left.pop, reached)
        if mass[piece].sum() >= MODE_MASS:
            pieces.append(piece)
    tops = [piece[0] for piece in pieces]
    return posterior.u[tops], torch.stack([mass[piece].sum() for piece in pieces])


def exact_elbo(model: VAE, images: Tensor, q: Gaussians, n_nodes: int = 12) -> Tensor:
    """The ELBO by the Gauss-Hermite rule with `n_nodes` along each axis of z: (N,).

    log p(x) less this is KL(q(z|x) || p(z|x)), without any noise.
    """
    nodes, weights = map(torch.from_numpy, np.polynomial.hermite_e.hermegauss(n_nodes))
    weights = torch.outer(weights, weights).flatten() / (2 * math.pi)  # of sum 1
    neg_elbo = torch.zeros(len(images), dtype=torch.float64)
    for eps, weight in zip(torch.cartesian_prod(nodes, nodes).float(), weights, strict=True):
        terms = elbo_terms(model, images, q, eps.expand(len(images), 2))
        neg_elbo += weight * (terms.recon + terms.kl)
    return -neg_elbo
