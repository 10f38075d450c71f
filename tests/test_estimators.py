"""Evaluation against exact integrals, brute force and itself."""

import math

import pytest
import torch
from conftest import log_joint_on_a_grid, random_model
from torch.distributions import Independent, Normal, kl_divergence

import estimators as est
from checkpoint import load_checkpoint
from loss import bernoulli_nll
from model import VAE


@pytest.fixture(autouse=True)
def narrow_flow(monkeypatch):
    monkeypatch.setattr("prior.HIDDEN", 32)  # for speed


@pytest.fixture
def trained(tiny_run) -> VAE:
    """Trained for so short a time that its posteriors are simple."""
    return load_checkpoint(tiny_run / "best.pth")[0].requires_grad_(False)


@pytest.mark.parametrize(
    "config", [{}, {"arch": "conv", "width": 8}, {"prior": "flow"}], ids=["mlp", "conv", "flow"]
)
def test_results_are_a_plain_loop_for_any_batch_size(images, config):
    model, x = random_model(latent_dim=3, **config), images[:10]
    eps, truth = est.posterior_noise(10, 3), []
    for i, image in enumerate(x / 255):
        mu, logvar = model.encode(image[None])
        posterior = Independent(Normal(mu, torch.exp(0.5 * logvar)), 1)
        z = mu + torch.exp(0.5 * logvar) * eps[i]
        kl = posterior.log_prob(z) - model.prior.log_prob(z)
        if model.config.prior == "normal":
            kl = kl_divergence(posterior.base_dist, Normal(0.0, 1.0)).sum(dim=1)
        error = (torch.sigmoid(model.decode(z)) - image).square().sum().view(1)
        truth.append((mu, logvar, bernoulli_nll(model.decode(z), image), kl, error))
    truth = [torch.cat(part).detach().double() for part in zip(*truth, strict=True)]
    q = est.posteriors(model, x)
    once = est.importance_weighted_nll(model, x, q, 20)
    for size in (7, 64):
        found = [*est.posteriors(model, x, size), *est.elbo_terms(model, x, q, eps, size)]
        torch.testing.assert_close([t.double() for t in found], truth, rtol=1e-5, atol=1e-5)
        assert not any(tensor.is_inference() for tensor in found)  # a gradient may pass
        again = est.importance_weighted_nll(model, x, q, 20, size)
        torch.testing.assert_close(again, once, rtol=1e-5, atol=1e-4)


def test_the_bounds_are_in_order_and_the_nll_meets_the_exact_integral(trained, images):
    """-ELBO >= L_50 >= L_2000 >= exact; far from it, but above, if q(z|x) is wrong."""
    exact, _, change = est.exact_nll(trained, images, 65)
    assert change < 0.01
    q = est.posteriors(trained, images)
    recon, kl, _ = est.elbo_terms(trained, images, q, est.posterior_noise(100, 2))
    few, many = (est.importance_weighted_nll(trained, images, q, k, 5000) for k in (50, 2000))
    assert (recon + kl).mean() > few.mean() > many.mean()
    assert exact.mean() - 0.01 < many.mean() < exact.mean() + 0.1
    wrong = est.Gaussians(q.mu + torch.tensor([3.0, 0.0]), q.logvar - 8)
    misled = est.importance_weighted_nll(trained, images, wrong, 500, 5000)
    assert misled.mean() > exact.mean() + 1
    assert (misled > exact - 0.1).all()


@pytest.mark.parametrize("kind", ["one dimension", "trained", "flow"])
def test_the_exact_nll_is_an_integral_over_z_and_the_estimate_meets_it(kind, trained, images):
    """The function's integral is over u; this one is over z, and needs the prior's density."""
    model = {
        "one dimension": random_model(latent_dim=1, n_blocks=1),
        "trained": trained,
        "flow": random_model(prior="flow"),
    }[kind]
    _, log_joint = log_joint_on_a_grid(model, images[:3] / 255)
    truth = -(torch.logsumexp(log_joint, dim=0) + model.config.latent_dim * math.log(0.1))
    exact, n_grid, _ = est.exact_nll(model, images[:3], 5)
    torch.testing.assert_close(exact, truth, atol=1e-3, rtol=0)
    assert n_grid >= 17  # it took more than one halving
    q = est.posteriors(model, images[:3])
    estimate = est.importance_weighted_nll(model, images[:3], q, 20_000)
    torch.testing.assert_close(estimate, truth, atol=0.1, rtol=0)


@pytest.mark.parametrize("prior", ["normal", "flow"])
def test_the_kl_of_a_dimension_is_from_the_prior_or_from_the_aggregate_posterior(prior):
    torch.manual_seed(0)
    mu, logvar = torch.randn(2, 20_000, 3)
    q = est.Gaussians(2 + mu * torch.tensor([0.0, 1.0, 5.0]), logvar)
    assert est.active_units(q.mu).tolist() == [False, True, True]
    posterior, reference = Normal(q.mu, torch.exp(0.5 * logvar)), Normal(0.0, 1.0)
    if prior == "flow":
        z = torch.cat([posterior.sample() for _ in range(50)])
        reference = Normal(z.mean(dim=0), z.std(dim=0))
    truth = kl_divergence(posterior, reference).mean(dim=0)
    torch.testing.assert_close(est.kl_of_dimensions(q, prior), truth, atol=5e-3, rtol=1e-4)
