"""What one computes about a model: ELBO terms, posteriors, log p(x) by sampling and by integration.

Images are uint8 (N, 1, 28, 28) anywhere; figures are float64 on the CPU, in nats per image.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from utils.device import autocast, rng

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from data import to_float
from loss import (
    bernoulli_nll,
    gaussian_log_prob,
    kl_per_dimension,
    log_mean_exp,
    squared_error,
    standard_normal_log_prob,
)
from model import VAE

NOISE_SEED = 0  # of the posterior draws, the same for every model and run
ACTIVE_VARIANCE = 0.01  # Burda et al. 2016, Section 5.2
GRID_LIMIT = 6.5  # the grid covers [-6.5, 6.5]^2; the prior's mass outside is below 2e-10
GRID_TOLERANCE = 0.01  # nats: fine enough when halving the step moves the mean by less
COARSEST_GRID, FINEST_GRID = 256, 2048  # points along each axis
FINEST_POSTERIOR = 16_384  # cells along each axis: those of one posterior are few
POSTERIOR_TOLERANCE = 1e-3  # nats: fine enough when halving the cells moves log p(x) by less
POSTERIOR_DEPTH = 12.0  # nats below its peak: where p(z|x) may be cut off
POSTERIOR_CELLS = 400  # at least so many: enough for a smooth picture
NARROWEST = 0.007  # the deviation of the narrowest peak that the coarsest grid must not overlook
VALLEY = math.log(2)  # nats: two peaks are two modes if the density halves between them
MODE_MASS = 0.01  # the share of the posterior that a mode has at least, to be counted
N_LABELLED, N_NEIGHBOURS = 1000, 5


class ElboTerms(NamedTuple):
    """The ELBO's terms of N images: recon + kl is -ELBO."""

    recon: Tensor  # (N,): -log p(x|z) for one draw of z ~ q(z|x)
    kl: Tensor  # (N,): KL(q(z|x) || p(z))
    squared_error: Tensor  # (N,)
    mu: Tensor  # (N, L)
    logvar: Tensor  # (N, L)


def posterior_noise(n: int, latent_dim: int) -> Tensor:
    """The fixed eps (n, L) of all evaluations with one posterior draw an image."""
    return torch.randn(n, latent_dim, generator=rng(NOISE_SEED))


@torch.inference_mode()
def elbo_terms(
    model: VAE, images: Tensor, eps: Tensor, precision: str = "fp32", batch_size: int = 1000
) -> ElboTerms:
    """The ELBO's terms with z = mu + std * eps for the given eps (N, L).

    Only their rounding depends on `batch_size`.
    """
    model.eval()
    parts = []
    for chunk, noise in zip(images.split(batch_size), eps.split(batch_size), strict=True):
        x, noise = to_float(chunk.to(model.device)), noise.to(model.device)  # (B, 1, 28, 28)
        with autocast(precision, model.device):
            logits, mu, logvar = model(x, noise)
        z = model.reparameterize(mu, logvar, noise)  # (B, L)
        kl = model.prior.kl(mu, logvar, z[None])[0]
        parts.append((bernoulli_nll(logits, x), kl, squared_error(logits, x), mu, logvar))
    return ElboTerms(*(torch.cat(part).cpu().double() for part in zip(*parts, strict=True)))


@torch.inference_mode()
def posteriors(
    model: VAE, images: Tensor, precision: str = "fp32", batch_size: int = 1000
) -> tuple[Tensor, Tensor]:
    """mu and logvar of q(z|x), (N, L) each."""
    model.eval()
    parts = []
    for chunk in images.split(batch_size):
        with autocast(precision, model.device):
            parts.append(model.encode(to_float(chunk.to(model.device))))
    mu, logvar = (torch.cat(part).cpu().double() for part in zip(*parts, strict=True))
    return mu, logvar


def active_units(mu: Tensor) -> Tensor:
    """Whether each dimension's mean varies with the image by more than 0.01: (N, L) -> (L,).

    Burda et al. 2016, Section 5.2.
    """
    return mu.var(dim=0, correction=0) > ACTIVE_VARIANCE


def aggregate_posterior_std(mu: Tensor, logvar: Tensor) -> Tensor:
    """The deviation of the mean over images of q(z|x), in each dimension: (N, L) twice -> (L,)."""
    return (mu.var(dim=0, correction=0) + logvar.exp().mean(dim=0)).sqrt()


def kl_of_dimensions(mu: Tensor, logvar: Tensor, prior: str) -> Tensor:
    """How much each dimension says about the image: (N, L) twice -> (L,), means of the KL.

    Against N(0, 1), or with a flow, which has no such term for one dimension, against the Gaussian
    of the aggregate posterior's mean and deviation.
    """
    if prior == "flow":
        std = aggregate_posterior_std(mu, logvar)
        mu, logvar = (mu - mu.mean(dim=0)) / std, logvar - 2 * std.log()
    return kl_per_dimension(mu, logvar).mean(dim=0)


@torch.inference_mode()
def importance_weighted_nll(
    model: VAE, images: Tensor, n_samples: int, precision: str = "fp32", batch_size: int = 1000
) -> Tensor:
    """-L_K of Burda et al. 2016 (eq. 8), an upper bound of -log p(x): (N,).

    Each image is encoded once, and its K = `n_samples` draws are decoded in batches of at most
    `batch_size`, so memory does not grow with K. The draws of image i depend on i alone.
    """
    nll = torch.empty(len(images), dtype=torch.float64)  # many small results fragment the heap
    n_together = max(1, batch_size // n_samples)  # images whose draws fill a batch
    indices = torch.arange(len(images)).split(n_together)
    for index in tqdm(indices, desc="importance sampling", leave=False, disable=None):
        x = to_float(images[index].to(model.device))  # (B, 1, 28, 28)
        with autocast(precision, model.device):
            mu, logvar = (part[:, None] for part in model.encode(x))  # (B, 1, L)
        size = (n_samples, mu.shape[-1])
        eps = torch.stack([torch.randn(size, generator=rng(NOISE_SEED, int(i))) for i in index])
        z = model.reparameterize(mu, logvar, eps.to(model.device))  # (B, K, L)
        log_w = model.prior.log_prob(z) - gaussian_log_prob(z, mu, logvar)  # (B, K)
        for draws in torch.arange(n_samples).split(batch_size):
            with autocast(precision, model.device):
                logits = model.decode(z[:, draws])  # (B, D, 1, 28, 28)
            log_w[:, draws] -= bernoulli_nll(logits, x[:, None])
        nll[index] = -log_mean_exp(log_w.cpu().double())
    return nll


@torch.inference_mode()
def log_joint(model: VAE, x: Tensor, u: Tensor) -> Tensor:
    """log p(x|u) + log p(u) of each image at each point: x (N, 784), u (P, 2) -> (N, P).

    u ~ N(0, I) is what the prior makes z of. For all images and points log p(x|u) is one matrix
    product: x . logits - sum of softplus(logits).
    """
    logits = model.decode(model.prior.from_normal(u)).flatten(1)  # (P, 784)
    return x @ logits.T + (standard_normal_log_prob(u) - F.softplus(logits).sum(dim=1))


@torch.inference_mode()
def grid_log_sum(model: VAE, x: Tensor, n: int, shift: tuple[float, float]) -> Tensor:
    """log of the sum of p(x|u) p(u) over a grid of n * n points u: x (N, 784) -> (N,).

    `shift` moves the grid by so many of its steps.
    """
    step = 2 * GRID_LIMIT / n
    rows, columns = (
        torch.arange(n, device=x.device) * step - GRID_LIMIT + by * step for by in shift
    )
    total = torch.full((len(x),), -math.inf, dtype=torch.float64)
    for row in tqdm(rows, desc=f"quadrature, {n} x {n}", leave=False, disable=None):
        u = torch.stack((row.expand(n), columns), dim=1)  # (n, 2)
        row_log_sum = log_joint(model, x, u).logsumexp(dim=1)  # (N,)
        total = torch.logaddexp(total, row_log_sum.cpu().double())
    return total


def exact_nll(model: VAE, images: Tensor, n_grid: int = COARSEST_GRID) -> tuple[Tensor, int, float]:
    """-log p(x) by the trapezoidal rule over a grid in two dimensions; it needs no encoder.

    The grid is one of u ~ N(0, I), of which the prior makes z. It starts with `n_grid` points along
    each axis, and its step is halved until that moves the mean by less than GRID_TOLERANCE.
    Returns the nats (N,), the final points along each axis, and what the last halving moved.
    """
    x = to_float(images.to(model.device)).flatten(1)  # (N, 784)
    log_sum, change = grid_log_sum(model, x, n_grid, (0, 0)), math.inf
    while change >= GRID_TOLERANCE and n_grid < FINEST_GRID:
        shifts = ((0, 0.5), (0.5, 0), (0.5, 0.5))
        between = [grid_log_sum(model, x, n_grid, shift) for shift in shifts]
        finer = torch.stack((log_sum, *between)).logsumexp(dim=0)
        change = abs((finer - log_sum).mean().item() - math.log(4))  # a cell is a quarter as large
        log_sum, n_grid = finer, 2 * n_grid
    return -(log_sum + 2 * math.log(2 * GRID_LIMIT / n_grid)), n_grid, change


class Posterior(NamedTuple):
    """The true p(u|x) of one image on small square cells, where it is not negligible.

    u ~ N(0, I) is what the prior makes z of: with the standard normal, z itself.
    """

    cells: Tensor  # (P, 2) int64: number along each axis
    u: Tensor  # (P, 2): their centres
    log_density: Tensor  # (P,) float64: log p(u|x) there, in nats
    step: float  # the side of a cell
    log_evidence: float  # log p(x), in nats


def refined_posterior(log_joint_at: Callable[[Tensor], Tensor], coarse: Tensor) -> Posterior:
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
            yield refined_posterior(
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


def knn_accuracy(
    mu: Tensor, labels: Tensor, labelled_mu: Tensor, labelled: Tensor, n_draws: int = 20
) -> Tensor:
    """Accuracy of 5 nearest neighbours among 1,000 labelled images, for seeded draws of those.

    `mu` (N, L) and `labels` (N,) to classify; `labelled_mu` (M, L) and `labelled` (M,) to draw
    from. Returns (n_draws,). Of labels with equal votes the smallest wins. S-VAE's protocol
    (Davidson et al. 2018, Section 5.3).
    """
    accuracies = []
    for draw in range(n_draws):
        chosen = torch.randperm(len(labelled_mu), generator=rng(NOISE_SEED, draw))[:N_LABELLED]
        distances = torch.cdist(mu, labelled_mu[chosen])  # (N, 1000)
        nearest = distances.topk(N_NEIGHBOURS, largest=False).indices  # (N, 5)
        votes = F.one_hot(labelled[chosen][nearest], num_classes=10).sum(dim=1)  # (N, 10)
        accuracies.append((votes.argmax(dim=1) == labels).double().mean())
    return torch.stack(accuracies)
