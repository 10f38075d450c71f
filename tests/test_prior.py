"""The learned prior: its density against integrals on a grid, its draws and its inverse against the density."""

import pytest
import torch
from conftest import TINY, liven, one_sentence
from torch.autograd.functional import jacobian
from torch.distributions import Independent, Normal, kl_divergence

from model import VAE, VAEConfig
from prior import FlowPrior, NormalPrior

LIMIT, N_GRID = 10, 160  # a grid over [-10, 10]^2, eight points to the unit; what this flow has outside is below 1e-12


def normal(mu, std):
    return Independent(Normal(mu, std), 1)


def standard_normal(z):
    return normal(torch.zeros_like(z), torch.ones_like(z))


def lively_flow(latent_dim: int) -> FlowPrior:
    return liven(FlowPrior(latent_dim)).double().requires_grad_(False)


@pytest.fixture(scope="module")
def flow() -> FlowPrior:
    return lively_flow(2)


@pytest.fixture(scope="module")
def grid() -> torch.Tensor:
    """The middles of the grid's cells, z_1 first: (160 * 160, 2) float64."""
    step = 2 * LIMIT / N_GRID
    axis = (torch.arange(N_GRID, dtype=torch.float64) + 0.5) * step - LIMIT
    return torch.cartesian_prod(axis, axis)


@pytest.fixture(scope="module")
def masses(flow, grid) -> torch.Tensor:
    """The probability of each of the grid's cells, (160, 160)."""
    return flow.log_prob(grid).exp().view(N_GRID, N_GRID) * (2 * LIMIT / N_GRID) ** 2


def test_the_density_is_a_density_and_not_the_normal_one(masses, grid):
    assert masses.sum().item() == pytest.approx(1, abs=1e-9)
    normal_masses = standard_normal(grid).log_prob(grid).exp().view(N_GRID, N_GRID) * (2 * LIMIT / N_GRID) ** 2
    assert (masses - normal_masses).abs().sum() > 0.5


def test_samples_follow_the_density(flow, masses):
    n = 100_000
    u = torch.randn(n, 2, generator=torch.Generator().manual_seed(0)).double()
    z = flow.from_normal(u)
    edges = torch.linspace(-LIMIT, LIMIT, 2 * LIMIT + 1, dtype=torch.float64)
    found = torch.histogramdd(z, [edges, edges]).hist / n  # the share of the draws in each square of side 1
    truth = masses.view(20, 8, 20, 8).sum(dim=(1, 3))
    assert ((found - truth).abs() < 5 * (truth / n).sqrt() + 1e-4).all()


@pytest.mark.parametrize("latent_dim", [2, 3, 4, 7])
def test_from_normal_is_the_inverse_and_the_log_prob_counts_its_determinant(latent_dim):
    flow = lively_flow(latent_dim)
    u = torch.randn(5, latent_dim, generator=torch.Generator().manual_seed(0)).double()
    z = flow.from_normal(u)
    log_det = torch.stack([torch.linalg.slogdet(jacobian(flow.from_normal, row)).logabsdet for row in u])
    assert log_det.abs().min() > 0.01
    torch.testing.assert_close(flow.log_prob(z), standard_normal(u).log_prob(u) - log_det)
    torch.testing.assert_close(flow.log_prob(z[:, None])[:, 0], flow.log_prob(z))  # (5, 1, L), as for K draws an image


@pytest.mark.parametrize("latent_dim", [2, 3, 7])
def test_every_dimension_is_learned_and_depends_on_another(latent_dim):
    dz_du = jacobian(lively_flow(latent_dim).from_normal, torch.ones(latent_dim, dtype=torch.float64))
    assert (dz_du.diagonal() - 1).abs().min() > 1e-3
    assert (dz_du - dz_du.diagonal().diag()).abs().amax(dim=1).min() > 1e-3


@pytest.mark.parametrize("prior", [NormalPrior(), FlowPrior(5)], ids=["normal", "new flow"])
def test_the_normal_prior_and_a_new_flow_are_the_standard_normal(prior):
    z = 3 * torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(prior.log_prob(z), standard_normal(z).log_prob(z))
    u = torch.randn(50_000, 5, generator=torch.Generator().manual_seed(1))
    drawn = prior.from_normal(u)
    torch.testing.assert_close(drawn.T.cov(), torch.eye(5), atol=0.03, rtol=0)
    torch.testing.assert_close(drawn.mean(dim=0), torch.zeros(5), atol=0.03, rtol=0)


def test_the_kl_of_the_normal_prior_is_that_of_torch_distributions():
    mu, logvar, z = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0))
    truth = kl_divergence(normal(mu, torch.exp(0.5 * logvar)), standard_normal(mu))
    torch.testing.assert_close(NormalPrior().kl(mu, logvar, z), truth)


def test_the_kl_of_a_new_flow_is_the_closed_form_on_average():
    n, mu, logvar = 100_000, torch.tensor([1.0, -2.0, 0.0]), torch.tensor([0.0, -1.0, -3.0])
    posterior = normal(mu, torch.exp(0.5 * logvar))
    torch.manual_seed(0)
    kl = FlowPrior(3).kl(mu.expand(n, 3), logvar.expand(n, 3), posterior.sample((n,)))
    truth = kl_divergence(posterior, standard_normal(mu))
    assert abs(kl.mean() - truth) < 4 * kl.std() / n**0.5


def test_the_kl_of_a_flow_is_its_integral_on_average(flow, grid):
    n, mu, logvar = 100_000, torch.tensor([0.5, -1.0]).double(), torch.tensor([-1.0, -0.5]).double()
    posterior = normal(mu, torch.exp(0.5 * logvar))
    log_q = posterior.log_prob(grid)
    truth = (log_q.exp() * (log_q - flow.log_prob(grid))).sum() * (2 * LIMIT / N_GRID) ** 2
    torch.manual_seed(0)
    kl = flow.kl(mu.expand(n, 2), logvar.expand(n, 2), posterior.sample((n,)))
    assert abs(kl.mean() - truth) < 4 * kl.std() / n**0.5


def test_sample_draws_from_the_flow():
    model = VAE(VAEConfig("mlp", 4, 16, 1, "flow")).eval()
    liven(model.prior)
    u = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        drawn, undrawn = (torch.sigmoid(model.decode(z)) for z in (model.prior.from_normal(u), u))
    assert (drawn - undrawn).abs().max() > 0.01
    torch.testing.assert_close(model.sample(9, torch.Generator().manual_seed(1)), drawn)


def test_a_flow_of_one_dimension_is_refused(trainer, tmp_path):
    with pytest.raises(ValueError, match="latent_dim"):
        VAEConfig(prior="flow", latent_dim=1)
    refused = trainer(tmp_path, *TINY, "--prior", "flow", "--latent_dim", "1", "--save_dir", "run")
    assert refused.returncode == 2
    assert "latent_dim must be at least 2" in one_sentence(refused.stderr)
    assert not (tmp_path / "run").exists()
