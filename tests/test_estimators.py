"""Evaluation against exact integrals, brute force and itself."""

import math

import pytest
import torch
from conftest import log_joint_on_a_plane, random_model
from torch import Tensor
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

import estimators
from checkpoint import load_checkpoint
from estimators import (
    Gaussians,
    elbo_terms,
    exact_nll,
    grid_nll,
    importance_weighted_nll,
    kl_of_dimensions,
    likelier_starts,
    posterior_noise,
    posteriors,
    refined_posteriors,
)
from loss import bernoulli_nll
from model import VAE
from utils.device import rng


@pytest.fixture
def model(tiny_run) -> VAE:
    """Trained for so short a time that its posteriors are simple."""
    return load_checkpoint(tiny_run / "best.pth")[0]


@pytest.mark.parametrize(
    "config", [{}, {"arch": "conv", "width": 8}, {"prior": "flow"}], ids=["mlp", "conv", "flow"]
)
def test_results_are_a_plain_loop_over_the_images_for_any_batch_size(images, config):
    model, x = random_model(latent_dim=3, **config), images[:20]
    eps, truth = posterior_noise(20, 3), []
    for i, image in enumerate(x / 255):
        mu, logvar = model.encode(image[None])
        posterior = Independent(Normal(mu, torch.exp(0.5 * logvar)), 1)
        z = mu + torch.exp(0.5 * logvar) * eps[i]
        pixels = torch.sigmoid(model.decode(z))
        kl = posterior.log_prob(z) - model.prior.log_prob(z)
        if model.config.prior == "normal":
            standard = Independent(Normal(torch.zeros(1, 3), torch.ones(1, 3)), 1)
            kl = kl_divergence(posterior, standard)
        error = (pixels - image).square().sum().view(1)
        truth.append((mu, logvar, bernoulli_nll(model.decode(z), image), kl, error))
    truth = [torch.cat(part).detach().double() for part in zip(*truth, strict=True)]
    q = posteriors(model, x)
    once = (importance_weighted_nll(model, x, q, 50), *refined_posteriors(model, x, q, 3))
    for batch_size in (7, 64):
        how = {"batch_size": batch_size}
        found = [*posteriors(model, x, **how), *elbo_terms(model, x, q, eps, **how)]
        torch.testing.assert_close([t.double() for t in found], truth, rtol=1e-5, atol=1e-5)
        nll = importance_weighted_nll(model, x, q, 50, **how)
        again = (nll, *refined_posteriors(model, x, q, 3, **how))
        torch.testing.assert_close(again, once, rtol=1e-5, atol=1e-4)


def test_results_are_ordinary_tensors_that_a_gradient_may_pass(model, images):
    x, q = images[:5], posteriors(model, images[:5])
    found = [*q, *elbo_terms(model, x, q, posterior_noise(5, 2)), *grid_nll(model, x, 5)]
    found += [importance_weighted_nll(model, x, q, 3), *refined_posteriors(model, x, q, 2)]
    assert not any(tensor.is_inference() for tensor in found)
    model.decode(q.mu).sum().backward()
    assert model.decoder[0].weight.grad.abs().sum() > 0


def test_the_bounds_are_in_order_and_the_nll_meets_the_exact_integral(model, images):
    """-ELBO >= L_50 >= L_2000 >= exact, and L_2000 within 0.1 nats of it."""
    q = posteriors(model, images)
    terms = elbo_terms(model, images, q, posterior_noise(100, 2))
    few, many = (importance_weighted_nll(model, images, q, k, batch_size=5000) for k in (50, 2000))
    exact, _, change = exact_nll(model, images, 65)
    assert change < 0.01
    assert (terms.recon + terms.kl).mean() > few.mean() > many.mean()
    assert exact.mean() - 0.01 < many.mean() < exact.mean() + 0.1


def test_an_encoder_that_misses_modes_is_found_out(model, images):
    """Where q(z|x) is far off, the estimate may lie far above the exact NLL, never below it."""
    exact, _, _ = exact_nll(model, images[:50], 65)
    shifted_and_too_sure = torch.tensor([3.0, 0.0, -8.0, -8.0])
    model.encoder[-1].bias.data += shifted_and_too_sure
    q = posteriors(model, images[:50])
    misled = importance_weighted_nll(model, images[:50], q, 500, batch_size=5000)
    assert misled.mean() > exact.mean() + 1
    assert (misled > exact - 0.1).all()


@pytest.mark.parametrize("prior", ["normal", "flow"])
def test_refining_finds_the_prior_where_the_decoder_ignores_z(images, prior):
    """There the best posterior is p(z); a flow whose last layers are 0 is N(0, I) too."""
    model, x = random_model(latent_dim=3, prior=prior), images[:20]
    torch.nn.init.zeros_(model.decoder[-1].weight)
    for coupling in getattr(model.prior, "couplings", ()):
        torch.nn.init.zeros_(coupling.net[-1].weight)
        torch.nn.init.zeros_(coupling.net[-1].bias)
    encoder = Gaussians(torch.full((20, 3), 0.7), torch.full((20, 3), -1.0))
    refined = refined_posteriors(model, x, encoder, 200)
    for q, low, high in ((encoder, 1.0, 3.0), (refined, 0.0, 0.1)):
        kl = kl_divergence(Normal(q.mu, torch.exp(0.5 * q.logvar)), Normal(0.0, 1.0)).sum(dim=1)
        assert low <= kl.min()
        assert kl.max() < high


@pytest.mark.parametrize("prior", ["normal", "flow"])
def test_refining_mends_an_encoder_and_the_bounds_stay_bounds(model, images, prior):
    """A shifted and too narrow posterior comes near the true one, never below the exact NLL."""
    model = model if prior == "normal" else random_model(prior="flow")
    exact, _, _ = exact_nll(model, images, 65)
    good = posteriors(model, images)
    misled = Gaussians(good.mu + 0.5, good.logvar - 1)
    refined = refined_posteriors(model, images, misled, 100)

    def neg_elbo(q: Gaussians) -> float:
        draws = torch.randn(20, 100, 2, generator=torch.Generator().manual_seed(0))
        terms = [elbo_terms(model, images, q, eps) for eps in draws]
        return sum((term.recon + term.kl).mean().item() for term in terms) / 20

    assert exact.mean() < neg_elbo(refined) < min(neg_elbo(good), neg_elbo(misled))


@pytest.mark.parametrize("prior", ["normal", "flow"])
def test_a_refinement_starts_at_the_likeliest_z_of_a_scan_of_the_plane(model, images, prior):
    """Even if the encoder is far off; and never at a less likely z than the encoder's mean."""
    model = (model if prior == "normal" else random_model(prior="flow")).requires_grad_(False)
    x, uint8 = images[:3] / 255, images[:3]
    z, scan = log_joint_on_a_plane(model, x)  # (G, 2), (G, 3)
    best = Gaussians(z[scan.argmax(dim=0)], torch.full((3, 2), -1.0))
    lost = Gaussians(torch.full((3, 2), 6.0), best.logvar)

    def log_joint(mu: Tensor) -> Tensor:
        return model.prior.log_prob(mu) - bernoulli_nll(model.decode(mu), x)

    from_best, from_lost = (likelier_starts(model, uint8, q) for q in (best, lost))
    assert (log_joint(from_best.mu) > scan.amax(dim=0) - 1e-3).all()
    assert (log_joint(from_lost.mu) > scan.amax(dim=0) - 0.3).all()
    assert (log_joint(lost.mu) < scan.amax(dim=0) - 5).all()
    assert torch.equal(from_lost.logvar, lost.logvar)


def test_no_metric_has_the_draws_of_the_refinement(model, images, monkeypatch):
    """It would be too good: the posterior fits the draws that it has seen."""
    streams = set()

    def recorded(*seeds: int) -> torch.Generator:
        generator = rng(*seeds)
        streams.add(generator.initial_seed())
        return generator

    monkeypatch.setattr(estimators, "rng", recorded)
    q = posteriors(model, images)
    refined_posteriors(model, images, q, 1)
    of_refinement = streams.copy()
    streams.clear()
    elbo_terms(model, images, q, posterior_noise(100, 2))
    importance_weighted_nll(model, images, q, 1)
    assert len(of_refinement) == 101  # one stream more for where it may start
    assert len(streams) == 100  # rng(0) of all images is rng(0, 0) of the first
    assert not of_refinement & streams


@pytest.mark.parametrize("prior", ["normal", "flow"])
@pytest.mark.parametrize(("n_dims", "n_grid"), [(1, 201), (2, 41), (3, 13)])
def test_a_grid_is_a_plain_sum_over_its_points(images, n_dims, n_grid, prior):
    """In double precision by torch.distributions; the coarser sum is that of every second point."""
    if n_dims == 1 and prior == "flow":
        pytest.skip("a flow has at least two dimensions")
    model, x = random_model(latent_dim=n_dims, prior=prior).requires_grad_(False), images[:3] / 255
    found = grid_nll(model, images[:3], n_grid)
    for nll, every in zip(found, (1, 2), strict=True):
        axis = torch.linspace(-6.5, 6.5, n_grid, dtype=torch.float64)[::every]
        u = torch.stack(torch.meshgrid([axis] * n_dims, indexing="ij"), dim=-1).flatten(0, -2)
        logits = model.decode(model.prior.from_normal(u.float()))[:, None].double()
        log_joint = Independent(Bernoulli(logits=logits), 3).log_prob(x)  # (P, 3)
        log_joint += Normal(0.0, 1.0).log_prob(u).sum(dim=1, keepdim=True)
        truth = -torch.log(torch.exp(log_joint - log_joint.max()).sum(dim=0)) - log_joint.max()
        truth = truth - n_dims * math.log(axis[1] - axis[0])
        torch.testing.assert_close(nll, truth, atol=1e-3, rtol=0)


def test_the_exact_nll_of_a_decoder_that_ignores_z_is_its_nll(images):
    for n_dims, n_grid in ((1, 33), (2, 33), (3, 17)):
        model = random_model(latent_dim=n_dims)
        torch.nn.init.zeros_(model.decoder[-1].weight)
        truth = bernoulli_nll(model.decode(torch.zeros(9, n_dims)), images[:9] / 255).detach()
        exact, found_grid, change = exact_nll(model, images[:9], n_grid)
        torch.testing.assert_close(exact, truth.double(), rtol=1e-6, atol=1e-3)
        assert change < 0.01
        assert found_grid == n_grid  # one halving shows that the first grid was fine enough


@pytest.mark.parametrize("prior", ["normal", "flow"])
def test_the_exact_nll_is_an_integral_over_z_and_the_estimate_meets_it(images, prior):
    """The function's integral is over u; this one is over z, and needs the prior's density."""
    model = random_model(prior=prior)
    _, log_joint = log_joint_on_a_plane(model, images[:3] / 255)
    truth = -(torch.logsumexp(log_joint, dim=0) + 2 * math.log(0.1))
    exact, n_grid, _ = exact_nll(model, images[:3], 5)
    torch.testing.assert_close(exact, truth, atol=1e-3, rtol=0)
    assert n_grid >= 17  # it took more than one halving
    estimate = importance_weighted_nll(model, images[:3], posteriors(model, images[:3]), 20_000)
    torch.testing.assert_close(estimate, truth, atol=0.1, rtol=0)


@pytest.mark.parametrize("prior", ["normal", "flow"])
def test_the_kl_of_a_dimension_is_from_the_prior_or_from_the_aggregate_posterior(prior):
    generator, scale = torch.Generator().manual_seed(0), torch.tensor([0.0, 1.0, 5.0])
    mu, logvar = torch.randn(2, 20_000, 3, generator=generator)
    q = Gaussians(2 + mu * scale, logvar)
    assert estimators.active_units(q.mu).tolist() == [False, True, True]
    torch.manual_seed(0)
    posterior, reference = Normal(q.mu, torch.exp(0.5 * logvar)), Normal(0.0, 1.0)
    if prior == "flow":
        z = torch.cat([posterior.sample() for _ in range(50)])
        reference = Normal(z.mean(dim=0), z.std(dim=0))
    truth = kl_divergence(posterior, reference).mean(dim=0)
    torch.testing.assert_close(kl_of_dimensions(q, prior), truth, atol=5e-3, rtol=1e-4)
    one = Gaussians(q.mu[:1], logvar[:1])
    assert torch.isfinite(kl_of_dimensions(one, prior)).all()  # --n_images 1


def test_knn_is_a_brute_force_vote():
    generator = torch.Generator().manual_seed(0)
    mu, known = torch.randn(1040, 2, generator=generator).split((40, 1000))
    labels, known_labels = torch.randint(0, 3, (1040,), generator=generator).split((40, 1000))
    n_right = 0
    for point, label in zip(mu.tolist(), labels.tolist(), strict=True):
        others = zip(known.tolist(), known_labels.tolist(), strict=True)
        distances = sorted((math.dist(point, other), digit) for other, digit in others)
        votes = [digit for _, digit in distances[:5]]
        n_right += max(range(10), key=lambda digit: (votes.count(digit), -digit)) == label
    accuracies = estimators.knn_accuracy(mu, labels, known, known_labels, n_draws=3)
    torch.testing.assert_close(accuracies, torch.full((3,), n_right / 40, dtype=torch.float64))
