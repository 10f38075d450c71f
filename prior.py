"""The prior p(z): the paper's standard normal, or a RealNVP flow that is learned with the rest.

Paper of the flow: Dinh et al., Density estimation using Real NVP (2017),
https://arxiv.org/abs/1605.08803.
"""

import torch
from torch import Tensor, nn

from loss import gaussian_log_prob, kl_divergence, standard_normal_log_prob

N_COUPLINGS, HIDDEN = 6, 128


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
    """u_b = z_b * exp(s) + t, where s and t are functions of the other half z_a, which stays.

    Equation 7 of the paper. tanh bounds s, so a coupling scales by at most e; s = t = 0 at first,
    so a new flow is the standard normal.
    """

    def __init__(self, latent_dim: int, n_a: int):
        super().__init__()
        self.n_a = n_a
        last = nn.Linear(HIDDEN, 2 * (latent_dim - n_a))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        hidden = [nn.Linear(n_a, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, HIDDEN), nn.SiLU()]
        self.net = nn.Sequential(*hidden, last)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(..., L) -> x_a, x_b, and s and t for x_b."""
        a, b = x[..., : self.n_a], x[..., self.n_a :]
        s, t = self.net(a).chunk(2, dim=-1)
        return a, b, torch.tanh(s), t

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z (..., L) -> u (..., L) and log |det du/dz| (...)."""
        a, b, s, t = self.split(z)
        return torch.cat((a, b * torch.exp(s) + t), dim=-1), s.sum(dim=-1)

    def inverse(self, u: Tensor) -> Tensor:
        """u (..., L) -> z (..., L)."""
        a, b, s, t = self.split(u)
        return torch.cat((a, (b - t) * torch.exp(-s)), dim=-1)


class FlowPrior(nn.Module):
    """p(z) by the change of variables to u ~ N(0, I), through couplings that alternate halves.

    `latent_dim` L is at least 2.
    """

    def __init__(self, latent_dim: int):
        super().__init__()
        # Of an odd L the middle dimension changes sides from coupling to coupling.
        halves = [(latent_dim + i % 2) // 2 for i in range(N_COUPLINGS)]
        self.couplings = nn.ModuleList(Coupling(latent_dim, n_a) for n_a in halves)

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
            z, change = coupling(z.flip(-1))  # the flip puts the other half in front
            log_det = log_det + change
        return z, log_det

    def from_normal(self, u: Tensor) -> Tensor:
        """u ~ N(0, I) -> z ~ p(z): (..., L) -> (..., L), undoing `to_normal`."""
        for coupling in reversed(self.couplings):
            u = coupling.inverse(u).flip(-1)
        return u
