"""The true posterior against plain sums, Gaussians and mixtures that are known."""

import math

import pytest
import torch
from conftest import log_joint_on_a_grid, random_model
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.distributions import MultivariateNormal as Gaussian

from estimators import posteriors
from vis.posterior import true_posterior
from vis.posterior.true_posterior import exact_elbo, modes, true_posteriors


@pytest.mark.parametrize("prior", ["normal", "flow"])
def test_evidence_less_elbo_is_the_kl_of_a_plain_sum_over_z(images, prior, monkeypatch):
    monkeypatch.setattr("prior.HIDDEN", 32)  # for speed
    model = random_model(prior=prior)
    z, log_joint = log_joint_on_a_grid(model, images[:3] / 255)
    log_evidence = log_joint.logsumexp(dim=0) + 2 * math.log(0.1)
    q = posteriors(model, images[:3])
    log_q = Independent(Normal(q.mu, torch.exp(0.5 * q.logvar)), 1).log_prob(z[:, None]).double()
    kl = (log_q.exp() * (log_q - (log_joint - log_evidence))).sum(dim=0) * 0.01
    found = torch.tensor([p.log_evidence for p in true_posteriors(model, images[:3], 400)])
    torch.testing.assert_close(found.double(), log_evidence, atol=1e-3, rtol=0)
    torch.testing.assert_close(found - exact_elbo(model, images[:3], q), kl, atol=5e-3, rtol=5e-4)
    assert kl.min() > 0.1


def posteriors_of(*densities: torch.distributions.Distribution) -> list:
    """Those of toy models whose log p(x, u) is such a density, 100 nats lower."""

    def log_joint(densities, x, u):
        return torch.stack([densities[int(i)].log_prob(u) - 100 for i in x[:, 0]])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(true_posterior, "log_joint", log_joint)
        images = 255 * torch.arange(len(densities))[:, None]  # x is the number of a density
        return true_posteriors(densities, images, 400)


def test_the_posteriors_of_gaussian_toys_are_those_gaussians():
    turn, centre = torch.tensor([[0.8, -0.6], [0.6, 0.8]]), torch.tensor([1.2341, -0.5432])
    stds = [(0.007, 0.007), (0.01, 0.3), (1.0, 0.5)]  # images that are done at different levels
    covariances = [turn @ torch.diag(torch.tensor(std) ** 2) @ turn.T for std in stds]
    toys = [Gaussian(centre, covariance) for covariance in covariances]
    for toy, p in zip(toys, posteriors_of(*toys), strict=True):
        assert p.log_evidence == pytest.approx(-100, abs=1e-3)
        truth = toy.log_prob(p.u).double()
        torch.testing.assert_close(p.log_density, truth, atol=0.02, rtol=0)  # float32
        weights = p.log_density.exp() * p.step**2
        assert weights.sum().item() == pytest.approx(1, abs=5e-4)
        assert modes(p) == pytest.approx([0.9], abs=0.02)


def test_the_modes_of_a_mixture_are_its_parts_if_they_are_apart():
    shares, stds = torch.tensor([0.605, 0.38, 0.015]), torch.tensor([0.3, 0.02, 0.1])
    centres = torch.tensor([(-2.0, 1.0), (0.5, 0.5), (2.0, -3.0)])
    mixture = MixtureSameFamily(Categorical(shares), Independent(Normal(centres, stds[:, None]), 1))
    near = torch.tensor([(0.0, 0.0), (0.12, 0.16)])  # 2 standard deviations apart
    alone = Independent(Normal(near, torch.full((2, 1), 0.1)), 1)
    overlapping = MixtureSameFamily(Categorical(torch.tensor([0.5, 0.5])), alone)
    masses, joined = map(modes, posteriors_of(mixture, overlapping))
    level = 0.1 / stds.square().sum()  # 2 pi times the density at the edge of the region
    expected = (shares - level * stds.square())[[1, 0]].tolist()  # the third has less than 1 %
    assert sorted(masses) == pytest.approx(expected, abs=0.01)
    assert len(joined) == 1
