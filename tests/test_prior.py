"""The learned prior: its density, draws and inverse against integrals on a grid."""

import pytest
import torch
from conftest import liven
from torch.autograd.functional import jacobian
from torch.distributions import Independent, Normal

from prior import N_PAIRS, Prior

# A grid over [-12, 12]^2, four points to the unit; this flow's mass outside is below 1e-9.
LIMIT, N_GRID = 12, 96


def normal(mu, std):
    return Independent(Normal(mu, std), 1)


def standard_normal_log_prob(z):
    return normal(torch.zeros_like(z), torch.ones_like(z)).log_prob(z)


def lively_flow(latent_dim: int) -> Prior:
    torch.manual_seed(0)  # it draws the halves
    return liven(Prior(latent_dim, N_PAIRS)).double().requires_grad_(False)


@pytest.mark.parametrize("latent_dim", [2, 3, 7])
def test_the_inverse_its_determinant_and_a_part_in_it_for_every_dimension(latent_dim):
    flow = lively_flow(latent_dim)
    u = torch.randn(5, latent_dim, generator=torch.Generator().manual_seed(0)).double()
    z = flow.from_normal(u)
    dz_du = torch.stack([jacobian(flow.from_normal, row) for row in u])  # (5, L, L)
    log_det = torch.linalg.slogdet(dz_du).logabsdet
    assert log_det.abs().min() > 0.01
    torch.testing.assert_close(flow.to_normal(z), (u, -log_det))
    truth = standard_normal_log_prob(u) - log_det
    torch.testing.assert_close(flow.log_prob(z[:, None])[:, 0], truth)  # (5, 1, L)
    diagonal = dz_du.diagonal(dim1=1, dim2=2)
    assert (diagonal - 1).abs().amax(dim=0).min() > 1e-3  # scaled
    assert (dz_du - diagonal.diag_embed()).abs().amax(dim=(0, 2)).min() > 1e-3  # by another one


@pytest.mark.parametrize("prior", [Prior(5), Prior(5, N_PAIRS)], ids=["normal", "new flow"])
def test_the_normal_prior_and_a_new_flow_are_the_standard_normal(prior):
    z = 3 * torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(prior.log_prob(z), standard_normal_log_prob(z))
    torch.testing.assert_close(prior.from_normal(z), z)


@pytest.mark.parametrize("prior", [Prior(2), lively_flow(2)], ids=["normal", "flow"])
def test_the_density_has_mass_1_and_the_kl_is_its_integral_on_average(prior):
    axis = (torch.arange(N_GRID, dtype=torch.float64) + 0.5) * 2 * LIMIT / N_GRID - LIMIT
    grid = torch.cartesian_prod(axis, axis)  # the middles of the cells (96 * 96, 2)
    log_p, cell = prior.log_prob(grid), (2 * LIMIT / N_GRID) ** 2
    assert log_p.exp().sum().item() * cell == pytest.approx(1, abs=1e-9)
    mu, logvar = torch.tensor([[0.5, -1.0], [-1.0, -0.5]]).double()
    posterior = normal(mu, torch.exp(0.5 * logvar))
    log_q = posterior.log_prob(grid)
    truth = (log_q.exp() * (log_q - log_p)).sum() * cell
    torch.manual_seed(0)
    kl = prior.kl(mu[None], logvar[None], posterior.sample((20_000, 1)))
    assert kl.shape == (20_000, 1)
    assert abs(kl.mean() - truth) < 4 * kl.std() / len(kl) ** 0.5
