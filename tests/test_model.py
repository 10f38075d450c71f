"""The network: shapes, the reparameterization, what the weights start from."""

import pytest
import torch
from torch import nn

from model import VAE, Linear, VAEConfig

SMALL = {"mlp": VAEConfig("mlp", 3, width=16, n_blocks=2), "conv": VAEConfig("conv", 3, width=8, n_blocks=2)}
RNG = torch.Generator().manual_seed(0)
X = torch.rand(5, 1, 28, 28, generator=RNG)


@pytest.fixture(params=SMALL)
def model(request) -> VAE:
    torch.manual_seed(0)
    model = VAE(SMALL[request.param], mean_image=X.mean(dim=0)).eval()
    for parameter in model.parameters():  # so that the residual blocks, which start at zero, do something
        nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize("n", [1, 2, 5])
def test_shapes_for_any_batch_size(model, n):
    logits, mu, logvar = model(X[:n])
    assert logits.shape == (n, 1, 28, 28)
    assert mu.shape == logvar.shape == (n, 3)


def test_an_image_is_encoded_and_decoded_the_same_in_any_company(model):
    mu, logvar = model.encode(X)
    for i in range(len(X)):
        alone_mu, alone_logvar = model.encode(X[i : i + 1])
        torch.testing.assert_close(alone_mu[0], mu[i])
        torch.testing.assert_close(alone_logvar[0], logvar[i])
        torch.testing.assert_close(model.decode(mu[i : i + 1])[0], model.decode(mu)[i])


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


def test_gradients_reach_the_encoder_through_the_noise(model):
    mu, logvar = torch.zeros(4, 3, requires_grad=True), torch.zeros(4, 3, requires_grad=True)
    eps = torch.randn(4, 3, generator=RNG)
    model.reparameterize(mu, logvar, eps).sum().backward()
    torch.testing.assert_close(mu.grad, torch.ones(4, 3))
    torch.testing.assert_close(logvar.grad, 0.5 * eps)


def test_forward_is_encode_reparameterize_decode(model):
    eps = torch.randn(5, 3, generator=RNG)
    logits, mu, logvar = model(X, eps)
    torch.testing.assert_close(logits, model.decode(mu + torch.exp(0.5 * logvar) * eps))
    draws = torch.randn(4, 5, 3, generator=RNG)
    several, _, _ = model(X, draws)
    for i, one in enumerate(draws):
        torch.testing.assert_close(several[i], model(X, one)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("arch", SMALL)
def test_a_new_model_decodes_to_the_mean_image_and_its_blocks_do_nothing(arch):
    mean_image = torch.linspace(0.1, 0.9, 784).view(1, 28, 28)
    model = VAE(SMALL[arch], mean_image)
    last = [module for module in model.decoder if hasattr(module, "weight")][-1]
    nn.init.zeros_(last.weight)
    pixels = torch.sigmoid(model.decode(torch.randn(2, 3, generator=RNG)))
    torch.testing.assert_close(pixels, mean_image.expand(2, 1, 28, 28))
    for block in model.decoder:
        if type(block).__name__ == "Residual":
            last = block.f[-1]
            shape = (last.out_features,) if isinstance(last, Linear) else (last.out_channels, 7, 7)
            h = torch.randn(2, *shape, generator=RNG)
            torch.testing.assert_close(block(h), h)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_torchs_with_the_weight_transposed(bias):
    ours, theirs = Linear(7, 4, bias), nn.Linear(7, 4, bias)
    ours.load_state_dict(theirs.state_dict() | {"weight": theirs.weight.detach().T})
    x = torch.randn(3, 7, generator=RNG)
    torch.testing.assert_close(ours(x), theirs(x))


def test_sample_is_seeded_and_in_the_unit_interval(model):
    first, again, other = (model.sample(4, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.shape == (4, 1, 28, 28)
    assert first.min() >= 0
    assert first.max() <= 1
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    "bad",
    [
        {"arch": "rnn"},
        {"prior": "gamma"},
        {"prior": None},
        {"latent_dim": 0},
        {"width": -1},
        {"n_blocks": 2.5},
        {"latent_dim": 10**9},
        {"width": True},
    ],
)
def test_a_bad_config_is_refused_by_name(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        VAEConfig(**bad)
