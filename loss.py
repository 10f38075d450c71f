"""The paper's equations as pure functions: tensors in, nats per image out.

Paper: Kingma and Welling, Auto-Encoding Variational Bayes (2014), https://arxiv.org/abs/1312.6114.
Signs: everything here falls as the model gets better, except what is called `log_...`.
Shapes: B images, K draws of z for each, L latent dimensions.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

N_PIXELS = 784


def bernoulli_nll(logits: Tensor, x: Tensor) -> Tensor:
    """-log p(x|z) of a factorised Bernoulli decoder, in nats per image (paper: Appendix C.1).

    `logits` (..., B, 1, 28, 28) real; `x` in [0, 1] of a shape that broadcasts to it.
    Returns (..., B), summed over pixels. With grey pixels this is the cross-entropy that most
    repositories report, not a likelihood of any data.
    """
    nll = F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none")
    return nll.flatten(-3).sum(dim=-1)


def squared_error(logits: Tensor, x: Tensor) -> Tensor:
    """||sigmoid(logits) - x||^2: a Gaussian decoder's -log p(x|z) up to scale and constant.

    Paper: Appendix C.2. Shapes as for `bernoulli_nll`: returns (..., B), summed over pixels.
    """
    return (torch.sigmoid(logits) - x).square().flatten(-3).sum(dim=-1)


def kl_per_dimension(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, exp(logvar)) || N(0, 1)) of each dimension in nats: (B, L) twice -> (B, L).

    Paper: Appendix B.
    """
    # expm1 keeps the digits where logvar is near 0.
    return 0.5 * (mu.square() + torch.expm1(logvar) - logvar)


def kl_divergence(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, diag exp(logvar)) || N(0, I)) in nats per image: (B, L) twice -> (B,).

    Paper: Appendix B.
    """
    return kl_per_dimension(mu, logvar).sum(dim=1)


def gaussian_log_prob(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """log N(z; mu, diag exp(logvar)) in nats; shapes broadcast to (..., L) -> (...).

    Paper: Appendix C.2.
    """
    squared_distance = (z - mu).square() * torch.exp(-logvar)
    return -0.5 * (squared_distance + logvar + math.log(2 * math.pi)).sum(dim=-1)


def standard_normal_log_prob(z: Tensor) -> Tensor:
    """log N(z; 0, I) in nats, the prior p(z) of the paper's Section 3: (..., L) -> (...)."""
    zero = torch.zeros((), dtype=z.dtype, device=z.device)
    return gaussian_log_prob(z, zero, zero)


def log_mean_exp(log_w: Tensor, dim: int = -1) -> Tensor:
    """log of the mean of exp(log_w) over one dimension, without overflow."""
    return torch.logsumexp(log_w, dim) - math.log(log_w.shape[dim])


def negative_bound(recon: Tensor, kl: Tensor, recon_weight: float = N_PIXELS) -> Tensor:
    """What training minimises, a mean over the batch (): `recon` (K, B) and `kl` (K, B) in nats.

    `recon` is -log p(x|z_k) and `kl` log q(z_k|x) - log p(z_k), or its mean, the KL divergence.
    With one draw (K = 1) this is recon_weight * recon / 784 + kl: -ELBO for the weight 784
    (paper: eq. 7), a beta-VAE of beta = 784 / recon_weight for others (Higgins et al. 2017).
    With more it is the importance-weighted bound L_K, negated (Burda et al. 2016, eq. 8).
    """
    log_w = -(recon_weight / N_PIXELS * recon + kl)
    return -log_mean_exp(log_w, dim=0).mean()
