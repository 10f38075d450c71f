"""The measuring stick against an exact integral, brute force and itself."""

import math

from utils.checkpoint import load_checkpoint
from utils.device import rng

import pytest
import torch
from conftest import log_joint_on_a_plane, random_model
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

import estimators
from estimators import (
    Gaussians,
    active_units,
    aggregate_posterior_std,
    elbo_terms,
    exact_nll,
    importance_weighted_nll,
    kl_of_dimensions,
    knn_accuracy,
    likelier_starts,
    posterior_noise,
    posteriors,
    refined_posteriors,
    stratified_nll,
)
from loss import bernoulli_nll, log_mean_exp
from model import VAE


@pytest.fixture
def model(tiny_run) -> VAE:
    """Trained for so short a time that its posteriors are simple."""
    return load_checkpoint(tiny_run / "best.pth")[0]


@pytest.mark.parametrize(
    "config", [{}, {"arch": "conv", "width": 8}, {"prior": "flow"}], ids=["mlp", "conv", "flow"]
)
def test_results_are_a_plain_loop_over_the_images_for_any_batch_size(images, config):
    model, x = random_model(latent_dim=3, **config), images[:50]
    eps = posterior_noise(50, 3)
    truth = []
    with torch.no_grad():
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
    truth = [torch.cat(part).double() for part in zip(*truth, strict=True)]
    for batch_size in (7, 50):
        q = posteriors(model, x, batch_size=batch_size)
        terms = elbo_terms(model, x, q, eps, batch_size=batch_size)
        torch.testing.assert_close([*q, *terms], truth, rtol=1e-5, atol=1e-5)
    few = Gaussians(q.mu[:20], q.logvar[:20])
    once = importance_weighted_nll(model, x[:20], few, 50)
    refined = refined_posteriors(model, x[:20], few, 3)
    for batch_size in (7, 64):
        nll = importance_weighted_nll(model, x[:20], few, 50, batch_size=batch_size)
        torch.testing.assert_close(nll, once, rtol=1e-6, atol=1e-4)
        again = refined_posteriors(model, x[:20], few, 3, batch_size=batch_size)
        torch.testing.assert_close(again, refined, rtol=1e-5, atol=1e-4)


def test_the_bounds_are_in_order_and_the_nll_meets_the_exact_integral(model, images):
    """-ELBO >= L_50 >= L_2000 >= exact, and L_2000 within 0.1 nats of it."""
    q = posteriors(model, images)
    terms = elbo_terms(model, images, q, posterior_noise(100, 2))
    few, many = (importance_weighted_nll(model, images, q, k, batch_size=5000) for k in (50, 2000))
    exact, _, change = exact_nll(model, images, 64)
    assert change < 0.01
    assert (terms.recon + terms.kl).mean() > few.mean() > many.mean()
    assert exact.mean() - 0.01 < many.mean() < exact.mean() + 0.1


def test_an_encoder_that_misses_modes_is_found_out(model, images):
    """Where q(z|x) sits in the wrong place the estimate may lie far above, never below."""
    exact, _, _ = exact_nll(model, images[:50], 64)
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
    encoder = Gaussians(torch.full((20, 3), 0.7).double(), torch.full((20, 3), -1.0).double())
    refined = refined_posteriors(model, x, encoder, 200)
    for q, low, high in ((encoder, 1.0, 3.0), (refined, 0.0, 0.1)):
        kl = kl_divergence(Normal(q.mu, torch.exp(0.5 * q.logvar)), Normal(0.0, 1.0)).sum(dim=1)
        assert low <= kl.min()
        assert kl.max() < high


@pytest.mark.parametrize("prior", ["normal", "flow"])
def test_refining_mends_an_encoder_and_the_bounds_stay_bounds(model, images, prior):
    """A shifted and too narrow posterior comes near the true one, never below the exact NLL."""
    model = model if prior == "normal" else random_model(prior="flow")
    exact, _, _ = exact_nll(model, images, 64)
    good = posteriors(model, images)
    misled = Gaussians(good.mu + 0.5, good.logvar - 1)
    refined = refined_posteriors(model, images, misled, 100)

    def neg_elbo(q: Gaussians) -> float:
        draws = torch.randn(20, 100, 2, generator=torch.Generator().manual_seed(0))
        terms = [elbo_terms(model, images, q, eps) for eps in draws]
        return sum((term.recon + term.kl).mean().item() for term in terms) / 20

    assert exact.mean() < neg_elbo(refined) < min(neg_elbo(good), neg_elbo(misled))


@pytest.mark.parametrize("prior", ["normal", "flow"])
def test_a_refinement_starts_where_no_place_is_much_likelier(model, images, prior):
    """As a scan of the plane says, even if the encoder is far off; and never at a worse place."""
    model = model if prior == "normal" else random_model(prior="flow")
    x, uint8 = images[:3] / 255, images[:3]
    z, scan = log_joint_on_a_plane(model, x)  # (G, 2), (G, 3)
    best = Gaussians(z[scan.argmax(dim=0)].double(), torch.full((3, 2), -1.0).double())
    lost = Gaussians(torch.full((3, 2), 6.0).double(), best.logvar)

    def log_joint(mu: Tensor) -> Tensor:
        with torch.no_grad():
            nll = bernoulli_nll(model.decode(mu.float()), x)
        return model.prior.log_prob(mu.float()).detach() - nll

    from_best, from_lost = (likelier_starts(model, uint8, q) for q in (best, lost))
    assert (log_joint(from_best.mu) > scan.amax(dim=0) - 1e-3).all()
    assert (log_joint(from_lost.mu) > scan.amax(dim=0) - 0.3).all()
    assert (log_joint(lost.mu) < scan.amax(dim=0) - 5).all()
    assert torch.equal(from_lost.logvar, lost.logvar)


def test_no_figure_has_the_draws_of_the_refinement(model, images, monkeypatch):
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


def test_the_exact_nll_of_a_decoder_that_ignores_z_is_its_nll(images):
    model = random_model()
    torch.nn.init.zeros_(model.decoder[-1].weight)
    truth = bernoulli_nll(model.decode(torch.zeros(100, 2)), images / 255).detach().double()
    exact, n_grid, change = exact_nll(model, images, 32)
    torch.testing.assert_close(exact, truth, rtol=1e-6, atol=1e-3)
    assert change < 1e-3
    assert n_grid == 64  # one halving shows that the first grid was fine enough


@pytest.mark.parametrize("prior", ["normal", "flow"])
def test_the_exact_nll_is_a_plain_sum_over_z_and_the_estimate_meets_it(images, prior):
    """The function's integral is over u; this one is over z, and needs the prior's density."""
    model = random_model(prior=prior)
    _, log_joint = log_joint_on_a_plane(model, images[:3] / 255)
    truth = -(torch.logsumexp(log_joint, dim=0) + 2 * math.log(0.1))
    exact, n_grid, _ = exact_nll(model, images[:3], 4)
    torch.testing.assert_close(exact, truth, atol=1e-3, rtol=0)
    assert n_grid >= 16  # the sums of more than one halving went into it
    estimate = importance_weighted_nll(model, images[:3], posteriors(model, images[:3]), 20_000)
    torch.testing.assert_close(estimate, truth, atol=0.1, rtol=0)
    x, rng = images[:3].flatten(1) / 255, torch.Generator().manual_seed(0)
    # p(x) is estimated without bias, however coarse the cells are.
    coarse = torch.stack([-stratified_nll(model, x, 5, rng).double() for _ in range(1000)])
    torch.testing.assert_close(-log_mean_exp(coarse, dim=0), truth, atol=0.1, rtol=0)


@pytest.mark.parametrize("prior", ["normal", "flow"])
def test_what_a_dimension_says_is_its_kl_from_the_prior_or_from_the_aggregate_posterior(prior):
    rng, scale = torch.Generator().manual_seed(0), torch.tensor([0.0, 1.0, 5.0])
    mu, logvar = torch.randn(2, 20_000, 3, generator=rng)
    mu = 2 + mu * scale
    posterior = Normal(mu, torch.exp(0.5 * logvar))
    std = posterior.sample().std(dim=0)  # one draw for each image
    torch.testing.assert_close(aggregate_posterior_std(mu, logvar), std, atol=0, rtol=0.03)
    assert active_units(mu).tolist() == [False, True, True]
    centre, std = torch.zeros(3), torch.ones(3)
    if prior == "flow":
        centre, std = mu.mean(dim=0), aggregate_posterior_std(mu, logvar)
    truth = kl_divergence(posterior, Normal(centre, std)).mean(dim=0)
    torch.testing.assert_close(kl_of_dimensions(mu, logvar, prior), truth, atol=1e-3, rtol=1e-4)
    assert torch.isfinite(kl_of_dimensions(mu[:1], logvar[:1], prior)).all()  # --n_images 1


def test_knn_is_a_brute_force_vote():
    rng = torch.Generator().manual_seed(0)
    mu, labels = torch.randn(40, 2, generator=rng), torch.randint(0, 3, (40,), generator=rng)
    known = torch.randn(1000, 2, generator=rng)  # all are drawn, each time in another order
    known_labels = torch.randint(0, 3, (1000,), generator=rng)
    n_right = 0
    for point, label in zip(mu.tolist(), labels.tolist(), strict=True):
        others = zip(known.tolist(), known_labels.tolist(), strict=True)
        distances = sorted((math.dist(point, other), digit) for other, digit in others)
        votes = [digit for _, digit in distances[:5]]
        n_right += max(range(10), key=lambda digit: (votes.count(digit), -digit)) == label
    accuracies = knn_accuracy(mu, labels, known, known_labels, n_draws=3)
    torch.testing.assert_close(accuracies, torch.full((3,), n_right / 40, dtype=torch.float64))
