"""The formulas against torch.distributions, integrals and brute force."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import random_model
from torch import Tensor
from torch.distributions import Bernoulli, Independent, Normal
from torch.distributions import kl_divergence as kl_truth

import loss

RNG = torch.Generator().manual_seed(0)
LOGITS = 4 * torch.randn(5, 1, 28, 28, generator=RNG)
GREY = torch.rand(5, 1, 28, 28, generator=RNG)
MU, LOGVAR = 3 * torch.randn(6, 4, generator=RNG), 2 * torch.randn(6, 4, generator=RNG)


def gaussian(mu: Tensor, logvar: Tensor) -> Independent:
    return Independent(Normal(mu, torch.exp(0.5 * logvar)), 1)


STANDARD_NORMAL = gaussian(torch.zeros(4), torch.zeros(4))


def test_kl_divergence_is_that_of_torch_distributions():
    truth = kl_truth(gaussian(MU, LOGVAR), STANDARD_NORMAL.expand((6,)))
    torch.testing.assert_close(loss.kl_divergence(MU, LOGVAR), truth)
    torch.testing.assert_close(loss.kl_per_dimension(MU, LOGVAR).sum(dim=1), truth)


def test_kl_divergence_keeps_its_digits_near_the_prior():
    """There exp(l) - 1 - l is l^2 / 2, which float32 rounds away without expm1."""
    kl = loss.kl_divergence(torch.zeros(1, 1), torch.tensor([[1e-4]]))
    assert kl.item() == pytest.approx(1e-8 / 4, rel=0.05)


def test_bernoulli_nll_is_that_of_torch_distributions():
    x = (GREY > 0.5).float()
    draws = torch.stack((LOGITS, -LOGITS, 2 * LOGITS))  # (K, B, 1, 28, 28) against the same x
    for logits in (LOGITS, draws):
        truth = -Independent(Bernoulli(logits=logits), 3).log_prob(x)
        torch.testing.assert_close(loss.bernoulli_nll(logits, x), truth)


def test_bernoulli_nll_of_grey_pixels_is_the_mean_over_their_binarisations():
    logits, grey = LOGITS[:1, :, :1, :3], GREY[:1, :, :1, :3]
    mean = 0.0
    for bits in range(8):
        x = torch.tensor([bits >> i & 1 for i in range(3)]).float().view_as(grey)
        probability = torch.where(x == 1, grey, 1 - grey).prod()
        mean += probability * loss.bernoulli_nll(logits, x)
    torch.testing.assert_close(loss.bernoulli_nll(logits, grey), mean)


def test_squared_error_is_a_gaussian_decoder_up_to_scale_and_constant():
    weight = 1837.5
    variance = 784 / (2 * weight)
    truth = -Independent(Normal(torch.sigmoid(LOGITS), math.sqrt(variance)), 3).log_prob(GREY)
    constant = 392 * math.log(2 * math.pi * variance)
    torch.testing.assert_close(weight / 784 * loss.squared_error(LOGITS, GREY) + constant, truth)


def test_log_mean_exp_does_not_underflow():
    log_w = torch.randn(3, 7, generator=RNG, dtype=torch.float64)
    truth = torch.log(torch.exp(log_w).mean(dim=0))
    torch.testing.assert_close(loss.log_mean_exp(log_w - 5000), truth - 5000)


@pytest.mark.parametrize("prior", ["normal", "flow"])
@pytest.mark.parametrize("n_draws", [1, 3])
def test_negative_bound_is_that_of_torch_distributions_and_so_is_its_gradient(prior, n_draws):
    """-ELBO for one draw, -log of the mean importance weight for several; draw by draw."""
    model, weight, x = random_model(latent_dim=4, prior=prior), 500.0, GREY[:4]
    mu, logvar = model.encode(x)
    z = model.reparameterize(mu, logvar, torch.randn(n_draws, 4, 4, generator=RNG))
    logits, kl = model.decode(z), model.prior.kl(mu, logvar, z)
    bound = loss.negative_bound(loss.bernoulli_nll(logits, x), kl, weight)

    q = gaussian(mu, logvar)
    log_ratio = model.prior.log_prob(z) - q.log_prob(z)  # (K, B)
    if n_draws == 1 and prior == "normal":  # the closed form in place of the draw
        log_ratio = -kl_truth(q, STANDARD_NORMAL.expand((4,)))[None]
    nll = F.binary_cross_entropy(logits.sigmoid(), x.expand_as(logits), reduction="none")
    log_w = log_ratio - weight / 784 * nll.sum(dim=(2, 3, 4))
    truth = -log_w.double().exp().mean(dim=0).log().mean()
    with pytest.raises(ValueError, match="must be"):
        loss.negative_bound(kl[0], kl[0])
    assert bound.item() == pytest.approx(truth.item(), rel=1e-5)
    gradients = torch.autograd.grad(bound, [*model.parameters()], retain_graph=True)
    expected = torch.autograd.grad(truth, [*model.parameters()])
    assert all(gradient.isfinite().all() for gradient in gradients)
    torch.testing.assert_close(gradients, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("logvar", [-60.0, 60.0])
@pytest.mark.parametrize("logit", [-100.0, 100.0])
def test_extreme_values_give_finite_losses_and_gradients(logvar, logit):
    mu = torch.ones(2, 3, requires_grad=True)
    logvars = torch.full((2, 3), logvar, requires_grad=True)
    logits = torch.full((4, 2, 1, 28, 28), logit, requires_grad=True)  # four draws
    x = GREY[:2].round()
    nll, kl = loss.bernoulli_nll(logits, x), loss.kl_divergence(mu, logvars)
    bound = loss.negative_bound(1e3 * nll, kl.expand(4, 2))
    (bound + loss.squared_error(logits, x).sum()).backward()
    for value in (nll, kl, bound, mu.grad, logvars.grad, logits.grad):
        assert torch.isfinite(value).all()
    wrong = (x == (logit < 0)).flatten(1).sum(dim=1)  # each wrong pixel costs |logit| nats
    torch.testing.assert_close(nll, (100.0 * wrong).expand(4, 2), rtol=1e-6, atol=1e-3)
