"""The network: shapes, the reparameterization, what the weights start from."""

import pytest
import torch
from conftest import random_model
from torch import nn

from layers import Residual
from model import VAE, VAEConfig

RNG = torch.Generator().manual_seed(0)
X = torch.rand(5, 1, 28, 28, generator=RNG)


@pytest.fixture(params=["mlp", "conv"])
def model(request) -> VAE:
    return random_model(request.param, latent_dim=3, width=7).requires_grad_(False)


def test_an_image_is_encoded_and_decoded_the_same_in_any_company(model):
    mu, logvar = model.encode(X)
    logits = model.decode(mu)
    assert mu.shape == logvar.shape == (5, 3)
    assert logits.shape == (5, 1, 28, 28)
    for i in range(len(X)):
        alone = model.encode(X[i : i + 1])
        torch.testing.assert_close(alone, (mu[i : i + 1], logvar[i : i + 1]))
        torch.testing.assert_close(model.decode(mu[i : i + 1])[0], logits[i])


def test_the_posteriors_variance_is_at_most_the_standard_normals(model):
    _, logvar = model.encode(torch.stack((1e4 * X, -1e4 * X)).flatten(0, 1))
    assert torch.isfinite(logvar).all()
    assert (logvar <= 0).all()


def test_reparameterize_scales_and_shifts_the_noise(model):
    mu, logvar = torch.tensor([[1.0, -2.0, 0.0]]), torch.tensor([[0.0, 2.0, -4.0]])
    eps = torch.tensor([[0.5, 1.0, -1.0]])
    z = model.reparameterize(mu, logvar, eps)
    torch.testing.assert_close(z, torch.tensor([[1.5, -2.0 + torch.e, -(torch.e**-2)]]))


def test_reparameterize_draws_from_the_posterior(model):
    torch.manual_seed(0)
    mu, logvar = torch.tensor([1.0, -2.0, 0.0]), torch.tensor([0.0, 1.0, -2.0])
    z = model.reparameterize(mu.expand(100_000, 3), logvar.expand(100_000, 3))
    torch.testing.assert_close(z.mean(dim=0), mu, atol=0.03, rtol=0)
    torch.testing.assert_close(z.var(dim=0).log(), logvar, atol=0.03, rtol=0)


def test_forward_is_encode_reparameterize_decode_for_each_draw(model):
    draws = torch.randn(4, 5, 3, generator=RNG)
    logits, mu, logvar = model(X, draws)
    torch.testing.assert_close((mu, logvar), model.encode(X))
    for eps, several in zip(draws, logits, strict=True):
        truth = model.decode(mu + torch.exp(0.5 * logvar) * eps)
        torch.testing.assert_close(several, truth, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model(X, eps)[0], truth)


@pytest.mark.parametrize("arch", ["mlp", "conv"])
def test_a_new_model_decodes_to_the_mean_image_and_its_blocks_do_nothing(arch):
    mean_image = torch.linspace(0.1, 0.9, 784).view(1, 28, 28)
    model = VAE(VAEConfig(arch, width=8), mean_image)
    *_, last = (module for module in model.decoder if hasattr(module, "weight"))
    nn.init.zeros_(last.weight)
    pixels = torch.sigmoid(model.decode(torch.randn(2, 2, generator=RNG)))
    torch.testing.assert_close(pixels, mean_image.expand(2, 1, 28, 28))
    blocks = [module for module in model.modules() if isinstance(module, Residual)]
    for block in blocks:
        weight = block.f[-1].weight  # (n, n) or (n, n, 3, 3)
        h = torch.randn(2, len(weight), *weight.shape[2:], generator=RNG)
        torch.testing.assert_close(block(h), h)
    assert len(blocks) >= 5


def test_sample_is_seeded_and_in_the_unit_interval(model):
    seeds = (torch.Generator().manual_seed(seed) for seed in (1, 1, 2))
    first, again, other = (model.sample(4, seed) for seed in seeds)
    assert first.shape == (4, 1, 28, 28)
    assert first.min() >= 0
    assert first.max() <= 1
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_width_is_by_default_that_of_the_architecture():
    assert (VAEConfig("mlp").width, VAEConfig("conv").width) == (512, 32)
    assert VAEConfig("conv", width=512).width == 512


BAD = [{"arch": "rnn"}, {"prior": "gamma"}, {"prior": None}, {"width": -1}, {"width": True}]
BAD += [{"latent_dim": 0}, {"latent_dim": 10**9}, {"latent_dim": 1, "prior": "flow"}]
BAD += [{"n_blocks": 2.5}, {"n_blocks": 1, "arch": "conv"}, {"n_blocks": 2, "arch": "conv"}]


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_config_is_refused_by_name(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        VAEConfig(**bad)
