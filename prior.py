"""The prior p(z): the paper's standard normal, or a RealNVP flow that is learned with the rest.

Paper of the flow: Dinh et al., Density estimation using Real NVP (2017),
https://arxiv.org/abs/1605.08803.
"""

import torch
from torch import Tensor, nn

from layers import zero_net
from loss import gaussian_log_prob, kl_divergence, standard_normal_log_prob

N_COUPLINGS, HIDDEN = 10, 192


class NormalPrior(nn.Module):
    """p(z) = N(z; 0, I), without parameters."""

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) in nats: (..., L) -> (...)."""
        return standard_normal_log_prob(z)

    def kl(self, mu: Tensor, logvar: Tensor, z: Tensor) -> Tensor:
        """log q(z|x) - log p(z) in nats for each draw z ~ q(z|x), whose mean is KL(q || p).

        mu, logvar (B, L) and z (K, B, L) -> (K, B). A single draw (K = 1) is replaced by that
        mean, which is known in closed form: the estimator of the paper's eq. 7.
        """
        if len(z) == 1:
            return kl_divergence(mu, logvar)[None]
        return gaussian_log_prob(z, mu, logvar) - self.log_prob(z)

    def to_normal(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z ~ p(z) -> u ~ N(0, I) (..., L), and log |det du/dz| (...)."""
        return z, torch.zeros_like(z[..., 0])

    def from_normal(self, u: Tensor) -> Tensor:
        """u ~ N(0, I) -> z ~ p(z): (..., L) -> (..., L)."""
        return u


class Coupling(nn.Module):
    """u = z * exp(s) + t, where s and t are functions of the dimensions whose `mask` is 1.

    In those s = t = 0: they stay. Equation 9 of the paper. tanh bounds s, so a coupling scales by
    at most e; s = t = 0 everywhere at first, so a new flow is the standard normal.
    """

    def __init__(self, mask: Tensor):
        super().__init__()
        self.register_buffer("mask", mask)  # (L,) of 0 and 1
        self.net = zero_net(len(mask), HIDDEN, 2 * len(mask))

    def scale_and_shift(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """s and t for x, which may be z or u: (..., L) -> (..., L) twice."""
        s, t = self.net(x * self.mask).chunk(2, dim=-1)
        return torch.tanh(s) * (1 - self.mask), t * (1 - self.mask)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z (..., L) -> u (..., L) and log |det du/dz| (...)."""
        s, t = self.scale_and_shift(z)
        return z * torch.exp(s) + t, s.sum(dim=-1)

    def inverse(self, u: Tensor) -> Tensor:
        """u (..., L) -> z (..., L)."""
        s, t = self.scale_and_shift(u)
        return (u - t) * torch.exp(-s)


class FlowPrior(nn.Module):
    """p(z) by the change of variables to u ~ N(0, I), through couplings.

    Of each pair of couplings the first moves half of the dimensions, chosen at random, and the
    second the other half. `latent_dim` L is at least 2.
    """

    def __init__(self, latent_dim: int):
        super().__init__()
        self.couplings = nn.ModuleList()
        for _ in range(N_COUPLINGS // 2):
            mask = (torch.randperm(latent_dim) < latent_dim // 2).float()
            self.couplings += [Coupling(mask), Coupling(1 - mask)]

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) in nats: (..., L) -> (...) (eq. 3 of the paper)."""
        u, log_det = self.to_normal(z)
        return standard_normal_log_prob(u) + log_det

    def kl(self, mu: Tensor, logvar: Tensor, z: Tensor) -> Tensor:
        """log q(z|x) - log p(z) in nats for each draw z ~ q(z|x), whose mean is KL(q || p).

        mu, logvar (B, L) and z (K, B, L) -> (K, B).
        """
        return gaussian_log_prob(z, mu, logvar) - self.log_prob(z)

    def to_normal(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z ~ p(z) -> u ~ N(0, I) (..., L), and log |det du/dz| (...)."""
        log_det = torch.zeros_like(z[..., 0])
        for coupling in self.couplings:
            z, change = coupling(z)
            log_det = log_det + change
        return z, log_det

    def from_normal(self, u: Tensor) -> Tensor:
        """u ~ N(0, I) -> z ~ p(z): (..., L) -> (..., L), undoing `to_normal`."""
        for coupling in reversed(self.couplings):
            u = coupling.inverse(u)
        return u
