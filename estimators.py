"""What one computes about a model: posteriors, ELBO terms, log p(x) by sampling and by integration.

Images are uint8 (N, 1, 28, 28) anywhere; figures are float64 on the CPU, in nats per image.
"""

import math
from typing import NamedTuple

from utils.device import autocast, rng

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
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
from optimizer import AdamW, decay

NOISE_SEED, REFINING_SEED = 0, 1  # of the posterior draws, the same for every model and run
N_STARTS = 4096  # draws of the prior from which a refinement may start
REFINING_DRAWS, REFINING_LR = 4, 0.2  # of z in a step, in pairs; of mu / std and of logvar
ACTIVE_VARIANCE = 0.01  # Burda et al. 2016, Section 5.2
GRID_LIMIT = 6.5  # the grid covers [-6.5, 6.5]^2; the prior's mass outside is below 2e-10
GRID_TOLERANCE = 0.01  # nats: fine enough when halving the step moves the mean by less
COARSEST_GRID, FINEST_GRID = 256, 2048  # points along each axis
N_LABELLED, N_NEIGHBOURS, N_KNN_DRAWS = 1000, 5, 20


class ElboTerms(NamedTuple):
    """The ELBO's terms of N images: recon + kl is -ELBO."""

    recon: Tensor  # (N,): -log p(x|z) for one draw of z ~ q(z|x)
    kl: Tensor  # (N,): KL(q(z|x) || p(z)); with a flow, its estimate by that draw
    squared_error: Tensor  # (N,)


class Gaussians(NamedTuple):
    """q(z|x) = N(mu, diag exp(logvar)) of N images: the encoder's, or better ones."""

    mu: Tensor  # (N, L)
    logvar: Tensor  # (N, L)


@torch.inference_mode()
def posteriors(
    model: VAE, images: Tensor, precision: str = "fp32", batch_size: int = 1000
) -> Gaussians:
    """The encoder's q(z|x) of each image."""
    model.eval()
    parts = []
    for chunk in images.split(batch_size):
        with autocast(precision, model.device):
            parts.append(model.encode(to_float(chunk.to(model.device))))
    return Gaussians(*(torch.cat(part).cpu().double() for part in zip(*parts, strict=True)))


@torch.inference_mode()
def likelier_starts(
    model: VAE, images: Tensor, q: Gaussians, precision: str = "fp32", batch_size: int = 1000
) -> Gaussians:
    """`q`, but mu is the likeliest of N_STARTS draws of the prior where p(x, z) is higher there.

    In two dimensions the draws find modes that are broad or near 0; in many, none is near one.
    """
    u = torch.randn(N_STARTS, q.mu.shape[1], generator=rng(REFINING_SEED)).to(model.device)
    x = to_float(images.to(model.device)).flatten(1)  # (N, 784)
    mu = q.mu.float().to(model.device)  # (N, L)
    recon = elbo_terms(model, images, q, torch.zeros_like(q.mu), precision, batch_size).recon
    highest = model.prior.log_prob(mu) - recon.float().to(model.device)  # (N,)
    for z in model.prior.from_normal(u).split(batch_size):  # (B, L)
        log_joints = log_likelihood_table(model, x, z, precision) + model.prior.log_prob(z)
        there, index = log_joints.max(dim=1)  # (N,) each
        mu = torch.where((there > highest)[:, None], z[index], mu)
        highest = torch.maximum(highest, there)
    return Gaussians(mu.cpu().double(), q.logvar)


def refined_posteriors(
    model: VAE,
    images: Tensor,
    q: Gaussians,
    n_steps: int,
    precision: str = "fp32",
    batch_size: int = 1000,
) -> Gaussians:
    """Each image's q(z|x) after `n_steps` of Adam on its own -ELBO from its likelier start.

    What they gain is a part of the amortization gap, the price of one encoder for all images
    (Cremer et al. 2018, https://arxiv.org/abs/1801.03558). Each step has REFINING_DRAWS new draws
    of z, half of them mirrored. They depend on the image's number alone, and no figure is computed
    from them.
    """
    q = likelier_starts(model, images, q, precision, batch_size)
    parts, size = [], (n_steps, REFINING_DRAWS // 2, q.mu.shape[1])
    indices = torch.arange(len(images)).split(max(1, batch_size // REFINING_DRAWS))
    for index in tqdm(indices, desc="refining", leave=False, disable=None):
        x = to_float(images[index].to(model.device))  # (B, 1, 28, 28)
        start = torch.stack([part[index] for part in q]).float().to(model.device)  # (2, B, L)
        scale = torch.stack((torch.exp(0.5 * start[1]), torch.ones_like(start[1])))  # of a step
        change = torch.zeros_like(start, requires_grad=True)  # of mu and logvar
        optimizer = AdamW([change], weight_decay=0)
        rngs = (rng(NOISE_SEED, int(i), REFINING_SEED) for i in index)
        noise = torch.stack([torch.randn(size, generator=r) for r in rngs], dim=2)
        for step, half in enumerate(noise.to(model.device)):  # (K / 2, B, L)
            mu, logvar = start + scale * change  # (B, L) each
            z = model.reparameterize(mu, logvar, torch.cat((half, -half)))  # (K, B, L)
            with autocast(precision, model.device):
                logits = model.decode(z)  # (K, B, 1, 28, 28)
            kl = torch.cat([model.prior.kl(mu, logvar, draw[None]) for draw in z])  # (K, B)
            neg_elbo = (bernoulli_nll(logits, x) + kl).mean(dim=0)  # (B,)
            change.grad = torch.autograd.grad(neg_elbo.sum(), change)[0]
            optimizer.step(REFINING_LR * decay(step / n_steps))
        parts.append((start + scale * change).detach())
    return Gaussians(*torch.cat(parts, dim=1).cpu().double())


def posterior_noise(n: int, latent_dim: int) -> Tensor:
    """The fixed eps (n, L) of all evaluations with one posterior draw an image."""
    return torch.randn(n, latent_dim, generator=rng(NOISE_SEED))


@torch.inference_mode()
def elbo_terms(
    model: VAE,
    images: Tensor,
    q: Gaussians,
    eps: Tensor,
    precision: str = "fp32",
    batch_size: int = 1000,
) -> ElboTerms:
    """The ELBO's terms with z = mu + std * eps for the given eps (N, L).

    Only their rounding depends on `batch_size`.
    """
    model.eval()
    parts = []
    batches = (part.split(batch_size) for part in (images, *q, eps))
    for chunk, *rest in zip(*batches, strict=True):
        x = to_float(chunk.to(model.device))  # (B, 1, 28, 28)
        mu, logvar, noise = (part.float().to(model.device) for part in rest)  # (B, L) each
        z = model.reparameterize(mu, logvar, noise)  # (B, L)
        with autocast(precision, model.device):
            logits = model.decode(z)  # (B, 1, 28, 28)
        kl = model.prior.kl(mu, logvar, z[None])[0]
        parts.append((bernoulli_nll(logits, x), kl, squared_error(logits, x)))
    return ElboTerms(*(torch.cat(part).cpu().double() for part in zip(*parts, strict=True)))


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
    model: VAE,
    images: Tensor,
    q: Gaussians,
    n_samples: int,
    precision: str = "fp32",
    batch_size: int = 1000,
) -> Tensor:
    """-L_K of Burda et al. 2016 (eq. 8), an upper bound of -log p(x) for any `q`: (N,).

    The K = `n_samples` draws of an image are decoded in batches of at most `batch_size`, so the
    decoder's memory does not grow with K. The draws of image i depend on i alone.
    """
    nll = torch.empty(len(images), dtype=torch.float64)  # many small results fragment the heap
    n_together = max(1, batch_size // n_samples)  # images whose draws fill a batch
    indices = torch.arange(len(images)).split(n_together)
    for index in tqdm(indices, desc="importance sampling", leave=False, disable=None):
        x = to_float(images[index].to(model.device))  # (B, 1, 28, 28)
        mu, logvar = (part[index, None].float().to(model.device) for part in q)  # (B, 1, L) each
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


def log_likelihood_table(model: VAE, x: Tensor, z: Tensor, precision: str = "fp32") -> Tensor:
    """log p(x|z) in nats of every image x (N, 784) with every z (n, L): (N, n).

    One matrix product for all pairs: x . logits - sum of softplus(logits). `precision` is that of
    the decoder.
    """
    with autocast(precision, model.device):
        logits = model.decode(z).flatten(1)  # (n, 784)
    return x @ logits.T - F.softplus(logits).sum(dim=1)


def stratified_nll(
    model: VAE, x: Tensor, n: int, generator: Generator, precision: str = "fp32"
) -> Tensor:
    """-log p(x) in two dimensions, to be trained on; it needs no encoder: x (B, 784) -> (B,).

    The prior's plane is cut into n * n cells of equal mass, and p(x) is the mean of p(x|z) over one
    random z of each: an unbiased estimate, so its logarithm is low by as much as it is noisy. The
    batch shares the decoded z's.
    """
    cells = torch.cartesian_prod(*2 * [torch.arange(n, device=x.device)])  # (n * n, 2)
    where = torch.rand(n * n, 2, device=x.device, generator=generator)
    u = torch.special.ndtri((cells + where) / n).clamp(-GRID_LIMIT, GRID_LIMIT)
    return -log_mean_exp(log_likelihood_table(model, x, model.prior.from_normal(u), precision))


@torch.inference_mode()
def log_joint(model: VAE, x: Tensor, u: Tensor) -> Tensor:
    """log p(x|u) + log p(u) of each image at each point: x (N, 784), u (P, L) -> (N, P).

    u ~ N(0, I) is what the prior makes z of.
    """
    table = log_likelihood_table(model, x, model.prior.from_normal(u))
    return table + standard_normal_log_prob(u)


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


def knn_accuracy(
    mu: Tensor, labels: Tensor, labelled_mu: Tensor, labelled: Tensor, n_draws: int = N_KNN_DRAWS
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
