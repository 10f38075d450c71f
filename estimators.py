"""Evaluation of a trained model: posteriors, ELBO terms, and log p(x) by sampling or integration.

Images are uint8 (N, 1, 28, 28) on any device. ELBO terms and NLLs are float64 on the CPU.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import loss
from model import VAE
from utils.device import rng

NOISE_SEED = 0  # every model and every run is evaluated with this seed
ACTIVE_VARIANCE = 0.01  # Burda et al. 2016, Section 5.2
GRID_LIMIT = 6.5  # the grid covers [-6.5, 6.5]^L; the prior's mass outside it is below 2e-10
GRID_TOLERANCE = 0.01  # nats: a grid suffices if halving its step changes the mean NLL by less
MAX_GRID = 2049  # points per axis


class Gaussians(NamedTuple):
    """q(z|x) = N(mu, diag exp(logvar)) of N images, on the model's device."""

    mu: Tensor  # (N, L)
    logvar: Tensor  # (N, L)


@torch.no_grad()
def posteriors(model: VAE, images: Tensor, batch_size: int = 1000) -> Gaussians:
    """The encoder's q(z|x) for each image."""
    parts = [model.encode(part.to(model.device) / 255) for part in images.split(batch_size)]
    return Gaussians(*map(torch.cat, zip(*parts, strict=True)))


def posterior_noise(n: int, latent_dim: int) -> Tensor:
    """The fixed noise eps (n, L), on the CPU, for evaluations with one posterior draw per image."""
    return torch.randn(n, latent_dim, generator=rng(NOISE_SEED))


@torch.no_grad()
def elbo_terms(
    model: VAE, images: Tensor, q: Gaussians, eps: Tensor, batch_size: int = 1000
) -> tuple[Tensor, Tensor, Tensor]:
    """-log p(x|z), KL(q(z|x) || p(z)) and squared error, (N,) each, for z = mu + std * eps (N, L).

    The first two add up to -ELBO. With a flow, the KL divergence is estimated from this z.
    """
    parts = []
    split = (part.split(batch_size) for part in (images, *q, eps))
    for chunk, mu, logvar, noise in zip(*split, strict=True):
        x = chunk.to(model.device) / 255  # (B, 1, 28, 28)
        z = model.reparameterize(mu, logvar, noise.to(model.device))  # (B, L)
        logits = model.decode(z)  # (B, 1, 28, 28)
        kl = model.prior.kl(mu, logvar, z[None])[0]
        parts.append((loss.bernoulli_nll(logits, x), kl, loss.squared_error(logits, x)))
    return tuple(torch.cat(part).cpu().double() for part in zip(*parts, strict=True))


@torch.no_grad()
def importance_weighted_nll(
    model: VAE, images: Tensor, q: Gaussians, n_samples: int, batch_size: int = 1000
) -> Tensor:
    """Estimates -L_K (Burda et al. 2016, eq. 8), an upper bound on -log p(x): (N,).

    The K = `n_samples` draws per image are decoded in batches of at most `batch_size` (z of several
    images, or of one), so memory does not grow with K. The eps of image i depends only on i.
    """
    nll = torch.empty(len(images), dtype=torch.float64)  # one list of all NLLs fragments the heap
    indices = torch.arange(len(images)).split(max(1, batch_size // n_samples))
    for index in tqdm(indices, desc="importance sampling", leave=False, disable=None):
        x = images[index].to(model.device) / 255  # (B, 1, 28, 28)
        mu, logvar = (part[index] for part in q)  # (B, L) each
        size = (n_samples, mu.shape[-1])
        eps = [torch.randn(size, generator=rng(NOISE_SEED, int(i))) for i in index]
        z = model.reparameterize(mu, logvar, torch.stack(eps, dim=1).to(model.device))  # (K, B, L)
        parts = [loss.bernoulli_nll(model.decode(part), x) for part in z.split(batch_size)]
        log_w = model.prior.log_prob(z) - loss.gaussian_log_prob(z, mu, logvar) - torch.cat(parts)
        nll[index] = -loss.log_mean_exp(log_w.cpu().double())  # log_w (K, B)
    return nll


def log_likelihood_table(model: VAE, x: Tensor, z: Tensor) -> Tensor:
    """log p(x|z) in nats for every image x (N, 784) and every z (P, L): (N, P).

    log p(x|z) = x . logits - sum(softplus(logits)), so one matrix product serves all pairs.
    """
    logits = model.decode(z).flatten(1)  # (P, 784)
    return x.to(logits.dtype) @ logits.T - F.softplus(logits).sum(dim=1)


@torch.no_grad()
def log_joint(model: VAE, x: Tensor, u: Tensor) -> Tensor:
    """log p(x, u) of each image x (N, 784) at each u (P, L), which the prior maps to z: (N, P)."""
    table = log_likelihood_table(model, x, model.prior.from_normal(u))
    return table + loss.standard_normal_log_prob(u)


def grid_nll(model: VAE, images: Tensor, n_grid: int, limit: float = GRID_LIMIT) -> Tensor:
    """-log p(x) (N,) by the trapezoidal rule over u ~ N(0, I), without q(z|x); for small L only.

    The grid has `n_grid` points per axis from -limit to limit, where the integrand is nearly 0.
    """
    x, n_dims = images.to(model.device).flatten(1) / 255, model.config.latent_dim  # x (N, 784)
    axis, step = torch.linspace(-limit, limit, n_grid), 2 * limit / (n_grid - 1)
    points = torch.cartesian_prod(*[axis] * n_dims).view(-1, n_dims)  # (P, L)
    total = torch.full((len(x),), -math.inf, dtype=torch.float64)
    for part in tqdm(points.split(2048), f"grid of {n_grid}", leave=False, disable=None):
        table = log_joint(model, x, part.to(model.device)).cpu().double()  # (N, up to 2048)
        total = torch.logaddexp(total, table.logsumexp(dim=1))
    return -(total + n_dims * math.log(step))


def exact_nll(model: VAE, images: Tensor, n_grid: int = 257) -> tuple[Tensor, int, float]:
    """Halves the step until the mean NLL moves by < GRID_TOLERANCE or MAX_GRID is reached.

    Returns the NLL (N,), the final number of points per axis, and the last change in the mean.
    """
    nll, change = grid_nll(model, images, n_grid), math.inf
    while change >= GRID_TOLERANCE and n_grid < MAX_GRID:
        coarser, n_grid = nll, 2 * n_grid - 1
        nll = grid_nll(model, images, n_grid)
        change = (nll - coarser).mean().abs().item()
    return nll, n_grid, change


def active_units(mu: Tensor) -> Tensor:
    """Whether the variance of mu over images exceeds ACTIVE_VARIANCE: (N, L) -> (L,)."""
    return mu.var(dim=0, correction=0) > ACTIVE_VARIANCE


def kl_of_dimensions(q: Gaussians, prior: str) -> Tensor:
    """The mean KL divergence of each latent dimension in nats: (L,).

    The reference is N(0, 1). A flow's KL is not a sum over dimensions; the reference is then a
    Gaussian with the aggregate posterior's mean and standard deviation.
    """
    mu, logvar = q
    if prior == "flow":
        std = (mu.var(dim=0, correction=0) + logvar.exp().mean(dim=0)).sqrt()  # total variance
        mu, logvar = (mu - mu.mean(dim=0)) / std, logvar - 2 * std.log()  # reference -> N(0, 1)
    return loss.kl_per_dimension(mu, logvar).mean(dim=0)
