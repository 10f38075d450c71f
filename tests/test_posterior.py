"""The true posterior against plain sums, Gaussians and mixtures that are known."""

import math

import pytest
import torch
from conftest import log_joint_on_a_plane, random_model
from torch.distributions import (
    Categorical,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
)

from estimators import COARSEST_GRID, GRID_LIMIT, elbo_terms, posterior_noise, posteriors
from posterior import (
    Posterior,
    adaptive_posterior,
    effective_modes,
    exact_elbo,
    modes,
    true_posteriors,
)


@pytest.mark.parametrize("prior", ["normal", "flow"])
def test_evidence_less_elbo_is_the_kl_of_a_plain_sum_over_z(images, prior):
    model = random_model(prior=prior)
    z, log_joint = log_joint_on_a_plane(model, images[:3] / 255)
    log_evidence = log_joint.logsumexp(dim=0) + 2 * math.log(0.1)
    with torch.no_grad():
        mu, logvar = model.encode(images[:3] / 255)
    q = Independent(Normal(mu, torch.exp(0.5 * logvar)), 1)
    log_q = q.log_prob(z[:, None]).double()  # (G, 3)
    kl = (log_q.exp() * (log_q - (log_joint - log_evidence))).sum(dim=0) * 0.01
    found = torch.tensor([p.log_evidence for p in true_posteriors(model, images[:3], 64)])
    torch.testing.assert_close(found.double(), log_evidence, atol=1e-3, rtol=0)
    torch.testing.assert_close(found - exact_elbo(model, images[:3]), kl, atol=5e-3, rtol=0)
    assert kl.min() > 0.1

    many = images[:1].expand(4000, 1, 28, 28)
    terms = elbo_terms(model, many, posteriors(model, many), posterior_noise(4000, 2))
    noisy = -(terms.recon + terms.kl)
    error = noisy.std().item() / math.sqrt(4000)
    assert exact_elbo(model, images[:1]).item() == pytest.approx(noisy.mean().item(), abs=4 * error)


def posterior_of(density: torch.distributions.Distribution) -> Posterior:
    """That of a toy model whose log p(x, u) is such a density, 100 nats lower."""
    axis = (torch.arange(COARSEST_GRID) + 0.5) * (2 * GRID_LIMIT / COARSEST_GRID) - GRID_LIMIT
    coarse = density.log_prob(torch.cartesian_prod(axis, axis)).view(COARSEST_GRID, -1) - 100
    return adaptive_posterior(lambda u: density.log_prob(u) - 100, coarse)


@pytest.mark.parametrize("deviations", [(0.007, 0.007), (0.01, 0.3), (1.0, 0.5)])
def test_the_posterior_of_a_gaussian_toy_is_that_gaussian(deviations):
    turn = torch.tensor([[0.8, -0.6], [0.6, 0.8]])
    centre = torch.tensor([1.2341, -0.5432])
    covariance = turn @ torch.diag(torch.tensor(deviations) ** 2) @ turn.T
    toy = MultivariateNormal(centre, covariance)
    posterior = posterior_of(toy)
    assert posterior.log_evidence == pytest.approx(-100, abs=1e-3)
    truth = toy.log_prob(posterior.u).double()
    torch.testing.assert_close(posterior.log_density, truth, atol=0.02, rtol=0)  # float32
    weights = posterior.log_density.exp() * posterior.step**2
    assert weights.sum().item() == pytest.approx(1, abs=1e-4)
    weights /= weights.sum()
    mean = weights @ posterior.u.double()
    spread = posterior.u.double() - mean
    found = (weights[:, None] * spread).T @ spread
    torch.testing.assert_close(mean.float(), centre, atol=2e-3 * max(deviations), rtol=0)
    scale = max(deviations) ** 2
    torch.testing.assert_close(found.float(), covariance, atol=2e-3 * scale, rtol=0)
    points, mass = modes(posterior)
    assert len(points) == 1
    assert toy.log_prob(points[0]).item() == pytest.approx(toy.log_prob(centre).item(), abs=0.1)
    assert effective_modes(mass) == pytest.approx(1)


def mixture(shares: list[float], centres: list[tuple], deviations: list[float]) -> Posterior:
    parts = Independent(Normal(torch.tensor(centres), torch.tensor(deviations)[:, None]), 1)
    return posterior_of(MixtureSameFamily(Categorical(torch.tensor(shares)), parts))


def test_the_modes_of_a_mixture_are_its_parts():
    centres = [(-2.0, 1.0), (0.5, 0.5), (2.0, -3.0), (0.0, 5.0)]
    shares = [0.5, 0.3, 0.2 - 1e-7, 1e-7]  # the last is too small to be seen
    points, mass = modes(mixture(shares, centres, [0.3, 0.02, 0.1, 0.1]))
    torch.testing.assert_close(
        points, torch.tensor([centres[i] for i in (1, 2, 0)]), atol=0.03, rtol=0
    )
    torch.testing.assert_close(mass, torch.tensor([0.3, 0.2, 0.5]).double(), atol=2e-3, rtol=0)
    entropy = -sum(share * math.log(share) for share in (0.3, 0.2, 0.5))
    assert effective_modes(mass) == pytest.approx(math.exp(entropy), abs=0.01)
    assert effective_modes(torch.ones(3)) == pytest.approx(3)


@pytest.mark.parametrize(("distance", "n"), [(2.5, 1), (3.0, 1), (3.8, 2), (5.0, 2)])
def test_two_peaks_are_two_modes_if_the_density_halves_between_them(distance, n):
    """Of two equal Gaussians that is so from 3.33 deviations on; from 2 on there are two peaks."""
    at = 0.05 * distance * torch.tensor([0.6, 0.8]) / 2
    _, mass = modes(mixture([0.5, 0.5], [at.tolist(), (-at).tolist()], [0.05, 0.05]))
    assert len(mass) == n
    torch.testing.assert_close(mass, torch.full((n,), 1 / n).double(), atol=0.02, rtol=0)
