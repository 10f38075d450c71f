"""The paper's methods as functions: AEVB, its two competitors, and Appendix D's estimator.

Paper: Kingma and Welling, Auto-Encoding Variational Bayes (2014), https://arxiv.org/abs/1312.6114.
Shapes: B images with one Markov chain each, S draws per chain, L latent dimensions.
"""

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.distributions import MultivariateNormal

from estimators import log_likelihood_table
from loss import (
    bernoulli_nll,
    gaussian_log_prob,
    kl_divergence,
    log_mean_exp,
    standard_normal_log_prob,
)
from model import VAE

TARGET_ACCEPTANCE = 0.9  # Appendix E
ADAPTATION_RATE = 0.1  # log(step size) changes by this rate times the excess acceptance
FIRST_STEP_SIZE = 0.1
N_LEAPFROG = 4  # Appendix D
N_POSTERIOR_DRAWS = 50  # Appendix D
N_BURN_IN = 50  # steps that adapt the step size before the draws; the paper mentions no burn-in
N_PRIOR_DRAWS = 10_000  # candidates for a chain's start


def aevb_loss(model: VAE, x: Tensor, generator: Generator) -> Tensor:
    """-ELBO (paper: eq. 7, one draw), a mean over the images x (B, 1, 28, 28): ()."""
    mu, logvar = model.encode(x)  # (B, L) each
    z = model.reparameterize(mu, logvar, torch.randn(mu.shape, generator=generator))
    nll = bernoulli_nll(model.decode(z), x)  # (B,)
    return (nll + kl_divergence(mu, logvar)).mean()


def joint_nll(model: VAE, x: Tensor, z: Tensor) -> Tensor:
    """-log p(x, z), a mean over the images x (B, 1, 28, 28) with their z (B, L): ()."""
    return (bernoulli_nll(model.decode(z), x) - standard_normal_log_prob(z)).mean()


def wake_loss(model: VAE, x: Tensor, generator: Generator) -> Tensor:
    """-log p(x, z) with z ~ q(z|x): (). Only the decoder gets a gradient (Hinton et al. 1995)."""
    with torch.no_grad():
        mu, logvar = model.encode(x)
        z = model.reparameterize(mu, logvar, torch.randn(mu.shape, generator=generator))
    return joint_nll(model, x, z)


def sleep_loss(model: VAE, n: int, generator: Generator) -> Tensor:
    """-log q(z|x), a mean over n draws (x, z) ~ p(x, z): (). Only the encoder gets a gradient."""
    with torch.no_grad():
        z = torch.randn(n, model.config.latent_dim, generator=generator)
        mean = torch.sigmoid(model.decode(z))  # (n, 1, 28, 28)
        x = (torch.rand(mean.shape, generator=generator) < mean).float()
    return -gaussian_log_prob(z, *model.encode(x)).mean()


def wake_sleep_loss(model: VAE, x: Tensor, generator: Generator) -> Tensor:
    """The sum of the wake and sleep losses, which train different weights: ()."""
    return wake_loss(model, x, generator) + sleep_loss(model, len(x), generator)


class Posterior:
    """log p(x, z) as a function of z, for images x (B, 1, 28, 28); log p(z|x) plus a constant."""

    def __init__(self, model: VAE, x: Tensor):
        self.model, self.x = model, x

    @torch.no_grad()
    def log_prob(self, z: Tensor) -> Tensor:
        """log p(x, z) in nats: (B, L) -> (B,)."""
        return standard_normal_log_prob(z) - bernoulli_nll(self.model.decode(z), self.x)

    def gradient(self, z: Tensor) -> Tensor:
        """The gradient of `log_prob` with respect to z: (B, L) -> (B, L)."""
        z = z.detach().requires_grad_()
        logits = self.model.decode(z)  # (B, 1, 28, 28)
        residual = self.x - torch.sigmoid(logits.detach())  # d log p(x|z) / d logits
        return torch.autograd.grad(logits, z, residual)[0] - z.detach()


class Chain(NamedTuple):
    """The states of B Markov chains; each accepts or rejects its own proposals."""

    z: Tensor  # (B, L)
    log_prob: Tensor  # (B,), log p(x, z) at z
    step_size: Tensor  # (B, 1)


def leapfrog(
    z: Tensor, momentum: Tensor, posterior: Posterior, step_size: Tensor, n_steps: int
) -> tuple[Tensor, Tensor]:
    """Hamiltonian dynamics with unit mass: z, momentum (B, L), step_size (B, 1) -> z, momentum.

    The map preserves volume; with negated momentum it undoes itself (Neal 2011, eqs. 2.28-2.30).
    """
    momentum = momentum + 0.5 * step_size * posterior.gradient(z)
    for step in range(1, n_steps + 1):
        z = z + step_size * momentum
        half = 0.5 if step == n_steps else 1.0
        momentum = momentum + half * step_size * posterior.gradient(z)
    return z, momentum


def hmc_step(
    chain: Chain, posterior: Posterior, n_leapfrog: int, generator: Generator, adapt: bool = False
) -> Chain:
    """One step of Hamiltonian Monte Carlo, which leaves each p(z|x) invariant (Neal 2011).

    `adapt` changes each chain's step size so that the acceptance rate approaches 90 %.
    """
    start = torch.randn(chain.z.shape, generator=generator)
    z, end = leapfrog(chain.z, start, posterior, chain.step_size, n_leapfrog)
    log_prob = posterior.log_prob(z)
    kinetic = 0.5 * (start.square() - end.square()).sum(dim=1)
    log_ratio = (log_prob - chain.log_prob + kinetic).nan_to_num(-math.inf)  # (B,)
    accepted = torch.rand(log_ratio.shape, generator=generator).log() < log_ratio
    step_size = chain.step_size
    if adapt:
        excess = log_ratio.exp().clamp(max=1) - TARGET_ACCEPTANCE
        step_size = step_size * torch.exp(ADAPTATION_RATE * excess)[:, None]
    z = torch.where(accepted[:, None], z, chain.z)
    return Chain(z, torch.where(accepted, log_prob, chain.log_prob), step_size)


def evidence_by_appendix_d(chain: Chain, posterior: Posterior, generator: Generator) -> Tensor:
    """The paper's estimate of log p(x) in nats: (B,).

    1 / p(x) is the posterior mean of q(z) / p(x, z) for any density q. We fit a Gaussian q to one
    set of draws and average over another.
    """
    for _ in range(N_BURN_IN):
        chain = hmc_step(chain, posterior, N_LEAPFROG, generator, adapt=True)
    draws = []
    for _ in range(2 * N_POSTERIOR_DRAWS):
        chain = hmc_step(chain, posterior, N_LEAPFROG, generator)
        draws.append(chain)
    first, second = draws[:N_POSTERIOR_DRAWS], draws[N_POSTERIOR_DRAWS:]
    q = fit_gaussian(torch.stack([draw.z for draw in first]))
    log_ratio = [q.log_prob(draw.z) - draw.log_prob for draw in second]
    return -log_mean_exp(torch.stack(log_ratio))


def fit_gaussian(z: Tensor) -> MultivariateNormal:
    """One Gaussian per chain, with the mean and covariance of the chain's draws z (S, B, L)."""
    centred = z - z.mean(dim=0)
    covariance = torch.einsum("sbi,sbj->bij", centred, centred) / (len(z) - 1)
    jitter = 1e-8 * torch.eye(z.shape[-1])  # a chain that never moved has zero covariance
    return MultivariateNormal(z.mean(dim=0), covariance + jitter)


@torch.no_grad()
def resampled_prior(model: VAE, x: Tensor, generator: Generator) -> Tensor:
    """Picks one of 10,000 draws z ~ p(z) for each image x (B, 1, 28, 28): (B, L).

    z is picked with a probability proportional to p(x|z), so it is nearly a draw from p(z|x).
    """
    z = torch.randn(N_PRIOR_DRAWS, model.config.latent_dim, generator=generator)
    table = log_likelihood_table(model, x.flatten(1), z)  # (B, 10000)
    return z[torch.multinomial(table.softmax(dim=1), 1, generator=generator)[:, 0]]


def estimate_evidence(model: VAE, images: Tensor, generator: Generator) -> Tensor:
    """log p(x) of images (N, 1, 28, 28) uint8 by Appendix D's estimator, in nats: (N,)."""
    x = images / 255
    posterior = Posterior(model, x)
    z = resampled_prior(model, x, generator)
    chain = Chain(z, posterior.log_prob(z), torch.full((len(z), 1), FIRST_STEP_SIZE))
    return evidence_by_appendix_d(chain, posterior, generator)
