"""The network: shapes, the reparameterization, types, what the weights start from."""

import pytest
import torch
from conftest import random_model
from torch import nn

from layers import Residual
from model import VAE, VAEConfig
from utils.device import autocast

RNG = torch.Generator().manual_seed(0)
X = torch.rand(5, 1, 28, 28, generator=RNG)
CONFIGS = {"mlp": {"width": 7}, "conv": {"arch": "conv", "width": 7}, "flow": {"prior": "flow"}}


@pytest.fixture(params=CONFIGS)
def model(request) -> VAE:
    return random_model(latent_dim=3, **CONFIGS[request.param]).requires_grad_(False)


def test_an_image_is_encoded_and_decoded_the_same_in_any_company(model):
    mu, logvar = model.encode(X)
    z = torch.stack((mu, -mu, 2 * mu))  # (K, B, L)
    logits = model.decode(z)
    assert mu.shape == logvar.shape == (5, 3)
    assert logits.shape == (3, 5, 1, 28, 28)
    for i in range(5):
        alone = model.encode(X[i : i + 1])
        torch.testing.assert_close(alone, (mu[i : i + 1], logvar[i : i + 1]))
        one = model.decode(z[2, i])  # (L,)
        torch.testing.assert_close(one, logits[2, i], rtol=1e-5, atol=1e-5)
    _, extreme = model.encode(1e4 * X)
    assert torch.isfinite(extreme).all()
    assert (extreme <= 0).all()  # the variance is at most the prior's


def test_reparameterize_draws_from_the_posterior():
    torch.manual_seed(0)
    mu, logvar = torch.tensor([1.0, -2.0, 0.0]), torch.tensor([0.0, 1.0, -2.0])
    z = random_model().reparameterize(mu.expand(100_000, 3), logvar.expand(100_000, 3))
    torch.testing.assert_close(z.mean(dim=0), mu, atol=0.03, rtol=0)
    torch.testing.assert_close(z.var(dim=0).log(), logvar, atol=0.03, rtol=0)


@pytest.mark.parametrize("arch", ["mlp", "conv"])
def test_a_new_model_decodes_to_the_mean_image_and_its_blocks_do_nothing(arch):
    mean_image = torch.linspace(0.1, 0.9, 784).view(1, 28, 28)
    model = VAE(VAEConfig(arch, width=8), mean_image)
    *_, last = (module for module in model.decoder if hasattr(module, "weight"))
    nn.init.zeros_(last.weight)
    pixels = torch.sigmoid(model.decode(torch.randn(2, 2, generator=RNG)))
    torch.testing.assert_close(pixels, mean_image.expand(2, 1, 28, 28))
    blocks = [module for module in model.modules() if isinstance(module, Residual)]
    assert len(blocks) >= 5
    assert not any(parameter.any() for block in blocks for parameter in block.f[-1].parameters())


def test_a_sample_is_a_seeded_draw_from_the_prior_and_an_ordinary_tensor(model):
    seeded = torch.Generator().manual_seed
    first, again = model.sample(4, seeded(1)), model.sample(4, seeded(1))
    assert torch.equal(first, again)
    u = torch.randn(4, 3, generator=seeded(1))
    drawn, undrawn = (torch.sigmoid(model.decode(z)) for z in (model.prior.from_normal(u), u))
    torch.testing.assert_close(first, drawn)
    assert ((drawn - undrawn).abs().max() > 0.01) == (model.config.prior == "flow")
    model.requires_grad_(True).encode(first)[0].sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.encoder.parameters())


def results(model: VAE) -> list[torch.Tensor]:
    """mu, logvar, logits, and what `sample` makes of the draw u = mu."""
    mu, logvar = model.encode(X)
    return [mu, logvar, model.decode(mu), torch.sigmoid(model.decode(model.prior.from_normal(mu)))]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_results_have_the_type_of_the_weights(model, dtype):
    truth, model = results(model), model.to(dtype)
    found = results(model)
    assert {tensor.dtype for tensor in (*found, model.sample(3))} == {dtype}
    tolerance = 1e-4 if dtype == torch.float64 else 0.2
    torch.testing.assert_close([t.float() for t in found], truth, rtol=0, atol=tolerance)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_results_stay_float32_where_the_matrix_products_are_bf16(model, precision):
    """By the model's own `precision`, or under the caller's autocast."""
    truth = results(model)
    model.precision = precision
    with autocast({"fp32": "bf16", "bf16": "fp32"}[precision], model.device):
        found, pixels = results(model), model.sample(3)
    assert {tensor.dtype for tensor in (*found, pixels)} == {torch.float32}
    torch.testing.assert_close(found, truth, rtol=0, atol=0.2)
    assert not torch.equal(found[0], truth[0])
