"""The formulas against torch.distributions, numpy and brute force."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, Independent, Normal
from torch.distributions import kl_divergence as kl_truth

import loss

RNG = torch.Generator().manual_seed(0)
LOGITS = 4 * torch.randn(5, 1, 28, 28, generator=RNG)
GREY = torch.rand(5, 1, 28, 28, generator=RNG)
MU, LOGVAR = 3 * torch.randn(6, 4, generator=RNG), 2 * torch.randn(6, 4, generator=RNG)


def posterior(mu, logvar):
    return Independent(Normal(mu, torch.exp(0.5 * logvar)), 1)


def test_kl_divergence_is_that_of_torch_distributions():
    prior = posterior(torch.zeros_like(MU), torch.zeros_like(LOGVAR))
    torch.testing.assert_close(loss.kl_divergence(MU, LOGVAR), kl_truth(posterior(MU, LOGVAR), prior))


def test_kl_divergence_is_the_integral_that_it_stands_for():
    mu, logvar = 0.7, -1.2
    z = np.linspace(-20, 20, 400_001)
    log_q = -0.5 * ((z - mu) ** 2 / np.exp(logvar) + logvar + np.log(2 * np.pi))
    log_p = -0.5 * (z**2 + np.log(2 * np.pi))
    integral = np.sum(np.exp(log_q) * (log_q - log_p)) * (z[1] - z[0])
    assert loss.kl_divergence(torch.tensor([[mu]]), torch.tensor([[logvar]])).item() == pytest.approx(integral, rel=1e-5)


def test_kl_divergence_keeps_its_digits_near_the_prior():
    logvar = torch.tensor([[1e-4]])  # exp(l) - 1 - l is l^2 / 2 there, and lost to float32's rounding without expm1
    assert loss.kl_divergence(torch.zeros(1, 1), logvar).item() == pytest.approx(1e-8 / 4, rel=0.05)


def test_bernoulli_nll_is_that_of_torch_distributions():
    x = (GREY > 0.5).float()
    truth = -Independent(Bernoulli(logits=LOGITS), 3).log_prob(x)
    torch.testing.assert_close(loss.bernoulli_nll(LOGITS, x), truth)
    draws = torch.stack((LOGITS, -LOGITS, 2 * LOGITS))  # (K, B, 1, 28, 28) against the same x
    truth = -Independent(Bernoulli(logits=draws), 3).log_prob(x)
    torch.testing.assert_close(loss.bernoulli_nll(draws, x), truth)


def test_bernoulli_nll_of_grey_pixels_is_the_mean_over_their_binarisations():
    logits, grey = LOGITS[:1, :, :1, :3], GREY[:1, :, :1, :3]
    mean = 0.0
    for bits in range(8):
        x = torch.tensor([bits >> i & 1 for i in range(3)]).float().view_as(grey)
        probability = torch.where(x == 1, grey, 1 - grey).prod()
        mean += probability * loss.bernoulli_nll(logits, x)
    torch.testing.assert_close(loss.bernoulli_nll(logits, grey), mean)


def test_squared_error_is_numpys():
    mean = 1 / (1 + np.exp(-LOGITS.double().numpy()))
    truth = ((mean - GREY.double().numpy()) ** 2).reshape(5, -1).sum(axis=1)
    np.testing.assert_allclose(loss.squared_error(LOGITS, GREY).numpy(), truth, rtol=1e-5)


def test_gaussian_log_prob_is_that_of_torch_distributions():
    z = torch.randn(6, 4, generator=RNG)
    torch.testing.assert_close(loss.gaussian_log_prob(z, MU, LOGVAR), posterior(MU, LOGVAR).log_prob(z))
    torch.testing.assert_close(loss.standard_normal_log_prob(z), posterior(0 * z, 0 * z).log_prob(z))


def test_log_mean_exp_is_the_log_of_the_mean_and_does_not_underflow():
    log_w = torch.randn(3, 7, generator=RNG, dtype=torch.float64)
    truth = torch.log(torch.exp(log_w).mean(dim=1))
    torch.testing.assert_close(loss.log_mean_exp(log_w), truth)
    torch.testing.assert_close(loss.log_mean_exp(log_w - 5000), truth - 5000)


@pytest.mark.parametrize("logvar", [-60.0, 60.0])
@pytest.mark.parametrize("logit", [-100.0, 100.0])
def test_extreme_values_give_finite_losses_and_gradients(logvar, logit):
    mu = torch.ones(2, 3, requires_grad=True)
    logvars = torch.full((2, 3), logvar, requires_grad=True)
    logits = torch.full((2, 1, 28, 28), logit, requires_grad=True)
    x = GREY[:2].round()
    nll, kl = loss.bernoulli_nll(logits, x), loss.kl_divergence(mu, logvars)
    (nll + loss.squared_error(logits, x) + kl).sum().backward()
    for value in (nll, kl, mu.grad, logvars.grad, logits.grad):
        assert torch.isfinite(value).all()
    wrong = (x == (logit < 0)).flatten(1).sum(dim=1)  # each wrong pixel costs |logit| nats
    torch.testing.assert_close(nll, 100.0 * wrong, rtol=1e-6, atol=1e-3)


def test_the_gaussian_decoder_is_squared_error_up_to_scale_and_constant():
    weight = 1837.5
    variance = 784 / (2 * weight)
    truth = -Independent(Normal(torch.sigmoid(LOGITS), math.sqrt(variance)), 3).log_prob(GREY)
    constant = 392 * math.log(2 * math.pi * variance)
    torch.testing.assert_close(weight / 784 * loss.squared_error(LOGITS, GREY) + constant, truth)
