"""The paper's equations as pure functions: tensors in, nats per image out.

Paper: Kingma and Welling, Auto-Encoding Variational Bayes (2014), https://arxiv.org/abs/1312.6114.
Signs: everything here falls as the model gets better, except what is called `log_...`.
"""

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _CrossEntropy(torch.autograd.Function):
    """-x log p - (1 - x) log(1 - p) with p = sigmoid(logits), elementwise; its derivative by the logits is p - x.

    PyTorch's own goes through log1p, which on CPUs takes five times as long as log. `x` gets no gradient.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, x: Tensor) -> Tensor:
        p = torch.sigmoid(logits)
        ctx.save_for_backward(p - x)
        return logits.clamp(min=0) - logits * x - torch.log(torch.maximum(p, 1 - p))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (derivative,) = ctx.saved_tensors
        return grad * derivative, None


def bernoulli_nll(logits: Tensor, x: Tensor) -> Tensor:
    """-log p(x|z) of a factorised Bernoulli decoder, in nats per image (paper: Appendix C.1).

    `logits` (..., B, 1, 28, 28) real; `x` in [0, 1] of a shape that broadcasts to it. Returns (..., B), summed over pixels.
    With grey pixels this is the cross-entropy that most repositories report, not a likelihood of any data.
    """
    return _CrossEntropy.apply(logits, x).flatten(-3).sum(dim=-1)


def squared_error(logits: Tensor, x: Tensor) -> Tensor:
    """||sigmoid(logits) - x||^2 per image: a Gaussian decoder's -log p(x|z) up to scale and constant (paper: Appendix C.2).

    `logits` (..., B, 1, 28, 28) real; `x` in [0, 1] of a shape that broadcasts to it. Returns (..., B), summed over pixels.
    """
    return (torch.sigmoid(logits) - x).square().flatten(-3).sum(dim=-1)


def kl_per_dimension(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, exp(logvar)) || N(0, 1)) of each latent dimension, in nats (paper: Appendix B). (B, L) twice -> (B, L)."""
    return 0.5 * (mu.square() + torch.expm1(logvar) - logvar)  # expm1 keeps the digits where logvar is near 0


def kl_divergence(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, diag exp(logvar)) || N(0, I)) in nats per image (paper: Appendix B). (B, L) twice -> (B,)."""
    return kl_per_dimension(mu, logvar).sum(dim=1)


def gaussian_log_prob(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """log N(z; mu, diag exp(logvar)) in nats; shapes broadcast to (..., L) -> (...) (paper: Appendix C.2)."""
    squared_distance = (z - mu).square() * torch.exp(-logvar)
    return -0.5 * (squared_distance + logvar + math.log(2 * math.pi)).sum(dim=-1)


def standard_normal_log_prob(z: Tensor) -> Tensor:
    """log N(z; 0, I) in nats; (..., L) -> (...): the prior p(z) of the paper's Section 3."""
    zero = torch.zeros((), dtype=z.dtype, device=z.device)
    return gaussian_log_prob(z, zero, zero)


def log_mean_exp(log_w: Tensor) -> Tensor:
    """log of the mean of exp(log_w) over the last dimension: (..., K) -> (...).

    With log_w = log p(x|z_k) + log p(z_k) - log q(z_k|x) and z_k ~ q(z|x) this is the importance-weighted
    bound L_K of Burda et al. 2016 (eq. 8): the ELBO at K = 1, log p(x) as K grows.
    """
    return torch.logsumexp(log_w, dim=-1) - math.log(log_w.shape[-1])
