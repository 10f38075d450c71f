"""The variational autoencoder: encoder, reparameterization and decoder.

Paper: Kingma and Welling, Auto-Encoding Variational Bayes (2014), https://arxiv.org/abs/1312.6114.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from layers import blocks, linear_plus_mlp
from loss import N_PIXELS
from prior import N_PAIRS, Prior
from utils.device import autocast

ARCHS, PRIORS = ("mlp", "conv"), ("normal", "flow")
WIDTHS = {"mlp": 512, "conv": 32}  # hidden units of mlp, channels of conv
IMAGE_SHAPE = (1, 28, 28)
CONV = {"kernel_size": 3, "padding": 1}  # keeps height and width


@dataclass
class VAEConfig:
    """A model's hyperparameters; every checkpoint stores them so that the model can be rebuilt."""

    arch: str = "mlp"
    latent_dim: int = 2  # L
    width: int | None = None  # hidden units of mlp, channels of conv; None: as in WIDTHS
    n_blocks: int = 3  # of the decoder; the encoder has one fewer; conv has at least one in each
    prior: str = "normal"

    def __post_init__(self):
        self.width = self.width or WIDTHS[self.arch]


class Encoder(nn.Sequential):
    """x (B, 1, 28, 28) in [0, 1] -> (B, 2L): mu and the logit of the variance."""

    def __init__(self, config: VAEConfig):
        width, n_blocks, n_out = config.width, config.n_blocks, 2 * config.latent_dim
        if config.arch == "mlp":
            layers = [nn.Flatten(), nn.Linear(N_PIXELS, width)]  # (B, width)
            layers += blocks(n_blocks - 1, nn.Linear, width)
            layers += [nn.SiLU(), nn.Linear(width, n_out)]
        else:
            half = (width + 1) // 2
            layers = [nn.PixelUnshuffle(2), nn.Conv2d(4, half, **CONV)]  # (B, half, 14, 14)
            layers += blocks(n_blocks - 2, nn.Conv2d, half, **CONV)
            layers += [nn.SiLU(), nn.PixelUnshuffle(2), nn.Conv2d(4 * half, width, 1)]
            layers += blocks(1, nn.Conv2d, width, **CONV)  # (B, width, 7, 7)
            layers += [nn.SiLU(), nn.Flatten(), linear_plus_mlp(49 * width, 8 * width, n_out)]
        super().__init__(*layers)


class Decoder(nn.Sequential):
    """z (B, L) -> logits (B, 784) or (B, 1, 28, 28), before the output bias."""

    def __init__(self, config: VAEConfig):
        width, n_blocks, n_in = config.width, config.n_blocks, config.latent_dim
        if config.arch == "mlp":
            layers = [nn.Linear(n_in, width), *blocks(n_blocks, nn.Linear, width)]  # (B, width)
            layers += [nn.SiLU(), nn.Linear(width, N_PIXELS, bias=False)]
        else:
            half = (width + 1) // 2
            layers = [linear_plus_mlp(n_in, 8 * width, 49 * width), nn.Unflatten(1, (width, 7, 7))]
            layers += blocks(1, nn.Conv2d, width, **CONV)  # (B, width, 7, 7)
            layers += [nn.SiLU(), nn.Conv2d(width, 4 * half, 1), nn.PixelShuffle(2)]
            layers += blocks(n_blocks - 1, nn.Conv2d, half, **CONV)  # (B, half, 14, 14)
            layers += [nn.SiLU(), nn.Conv2d(half, 4, **CONV, bias=False), nn.PixelShuffle(2)]
        super().__init__(*layers)


class VAE(nn.Module):
    """A VAE: the prior p(z), the decoder p(x|z) and the encoder q(z|x).

    `mean_image`, the mean training image (1, 28, 28) in [0, 1], initialises the output bias.
    Results have the dtype of the weights. With `precision` "bf16", the matrix products of the
    encoder and the decoder run in bfloat16, while the weights stay float32.
    """

    precision = "fp32"

    def __init__(self, config: VAEConfig, mean_image: Tensor | None = None):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.prior = Prior(config.latent_dim, N_PAIRS if config.prior == "flow" else 0)
        bias = torch.zeros(IMAGE_SHAPE) if mean_image is None else torch.logit(mean_image, eps=1e-3)
        self.output_bias = nn.Parameter(bias)  # (1, 28, 28)

    @property
    def device(self) -> torch.device:
        """The device of the weights, all inputs and all results."""
        return self.output_bias.device

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """q(z|x) = N(mu, diag exp(logvar)): x (B, 1, 28, 28) in [0, 1] -> mu, logvar (B, L).

        The variance is a sigmoid, so it is at most 1, the variance of N(0, I). If logvar were
        unbounded, one outlier image could make a long run diverge.
        """
        with autocast(self.precision, self.device):
            h = self.encoder(x.to(self.output_bias.dtype))  # (B, 2L)
        mu, variance_logit = h.to(self.output_bias.dtype).chunk(2, dim=1)
        return mu, F.logsigmoid(variance_logit)

    def reparameterize(self, mu: Tensor, logvar: Tensor, eps: Tensor | None = None) -> Tensor:
        """z = mu + std * eps (paper: Section 2.4): mu, logvar (B, L), eps (..., B, L) -> like eps.

        Shapes broadcast. Without `eps`, one draw from N(0, I) is used: (B, L).
        """
        std = torch.exp(0.5 * logvar)
        return mu + std * (torch.randn_like(std) if eps is None else eps)

    def decode(self, z: Tensor) -> Tensor:
        """p(x|z): z (..., L) -> logits (..., 1, 28, 28), whose sigmoids are pixel means."""
        with autocast(self.precision, self.device):
            h = self.decoder(z.reshape(-1, z.shape[-1]).to(self.output_bias.dtype))
        return h.to(self.output_bias.dtype).view(*z.shape[:-1], *IMAGE_SHAPE) + self.output_bias

    @torch.no_grad()
    def sample(self, n: int, generator: Generator | None = None) -> Tensor:
        """n draws z ~ p(z), decoded to pixel means: (n, 1, 28, 28) in [0, 1]."""
        how = {"generator": generator, "device": self.device, "dtype": self.output_bias.dtype}
        u = torch.randn(n, self.config.latent_dim, **how)  # (n, L)
        return torch.sigmoid(self.decode(self.prior.from_normal(u)))
