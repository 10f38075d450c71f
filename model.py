"""The variational autoencoder: encoder to (mu, logvar), reparameterization, decoder to logits.

Paper: Kingma and Welling, Auto-Encoding Variational Bayes (2014), https://arxiv.org/abs/1312.6114.
Two architectures, fully connected or convolutional, of the layers in layers.py.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from layers import Shortcut, conv_blocks, linear_blocks
from loss import N_PIXELS
from prior import FlowPrior, NormalPrior

ARCHS = ("mlp", "conv")
PRIORS = ("normal", "flow")
WIDTHS = {"mlp": 512, "conv": 32}  # the default of each
IMAGE_SHAPE = (1, 28, 28)
MAX_LATENT_DIM, MAX_WIDTH, MAX_BLOCKS = 1024, 4096, 64


@dataclass(frozen=True)
class VAEConfig:
    """All that is needed to rebuild a model; it travels in every checkpoint.

    Raises ValueError for a value that is out of range.
    """

    arch: str = "mlp"
    latent_dim: int = 2  # L
    width: int | None = None  # hidden units of "mlp", channels of "conv"; None: that of WIDTHS
    n_blocks: int = 3  # residual blocks of the decoder; the encoder has one less
    prior: str = "normal"

    def __post_init__(self):
        for name, choices in {"arch": ARCHS, "prior": PRIORS}.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}")
        if self.width is None:
            object.__setattr__(self, "width", WIDTHS[self.arch])
        limits = {
            "latent_dim": (2 if self.prior == "flow" else 1, MAX_LATENT_DIM),
            "width": (1, MAX_WIDTH),
            "n_blocks": (3 if self.arch == "conv" else 1, MAX_BLOCKS),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                of = f"for arch {self.arch} and prior {self.prior}"
                raise ValueError(f"{name} must be a whole number from {low} to {high} {of}")


class Encoder(nn.Sequential):
    """x (B, 1, 28, 28) in [0, 1] -> (B, 2L): mu beside the logit of the variance."""

    def __init__(self, config: VAEConfig):
        width, n_blocks, head = config.width, config.n_blocks - 1, 2 * config.latent_dim
        if config.arch == "mlp":
            layers = [nn.Flatten(), nn.Linear(N_PIXELS, width)]  # (B, width)
            layers += linear_blocks(width, n_blocks)
            layers += [nn.SiLU(), nn.Linear(width, head)]
        else:
            half = (width + 1) // 2
            layers = [nn.PixelUnshuffle(2), nn.Conv2d(4, half, 3, padding=1)]  # (B, half, 14, 14)
            layers += conv_blocks(half, n_blocks - 1)
            layers += [nn.SiLU(), nn.PixelUnshuffle(2), nn.Conv2d(4 * half, width, 1)]
            layers += conv_blocks(width, 1)  # (B, width, 7, 7)
            layers += [nn.SiLU(), nn.Flatten(), Shortcut(49 * width, 8 * width, head)]
        super().__init__(*layers)


class Decoder(nn.Sequential):
    """z (B, L) -> (B, 784) or (B, 1, 28, 28): logits, before the output bias."""

    def __init__(self, config: VAEConfig):
        width, n_blocks, latent_dim = config.width, config.n_blocks, config.latent_dim
        if config.arch == "mlp":
            layers = [nn.Linear(latent_dim, width), *linear_blocks(width, n_blocks)]  # (B, width)
            layers += [nn.SiLU(), nn.Linear(width, N_PIXELS, bias=False)]
        else:
            half = (width + 1) // 2
            layers = [Shortcut(latent_dim, 8 * width, 49 * width), nn.Unflatten(1, (width, 7, 7))]
            layers += conv_blocks(width, 1)  # (B, width, 7, 7)
            layers += [nn.SiLU(), nn.Conv2d(width, 4 * half, 1), nn.PixelShuffle(2)]
            layers += conv_blocks(half, n_blocks - 1)  # (B, half, 14, 14)
            layers += [nn.SiLU(), nn.Conv2d(half, 4, 3, padding=1, bias=False), nn.PixelShuffle(2)]
        super().__init__(*layers)


class VAE(nn.Module):
    """p(x|z) p(z) and q(z|x): see `encode`, `reparameterize`, `decode`, `forward`, `sample`.

    `mean_image` (1, 28, 28) in [0, 1] is the training images' mean; the output bias starts there.
    """

    def __init__(self, config: VAEConfig, mean_image: Tensor | None = None):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.prior = FlowPrior(config.latent_dim) if config.prior == "flow" else NormalPrior()
        bias = torch.zeros(IMAGE_SHAPE) if mean_image is None else torch.logit(mean_image, eps=1e-3)
        self.output_bias = nn.Parameter(bias)  # (1, 28, 28)
        self.to(memory_format=torch.channels_last)  # the layout of the fastest convolutions

    @property
    def device(self) -> torch.device:
        """Where the weights are, and inputs must be."""
        return self.output_bias.device

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """q(z|x) = N(mu, diag exp(logvar)): x (B, 1, 28, 28) in [0, 1] -> mu, logvar (B, L).

        The variance is a sigmoid: at most 1, the standard normal's, to which it tends where x says
        nothing. Unbounded, the logvar of one odd image can end a long run in infinities.
        """
        mu, variance_logit = self.encoder(x).float().chunk(2, dim=1)
        return mu, F.logsigmoid(variance_logit)

    def reparameterize(self, mu: Tensor, logvar: Tensor, eps: Tensor | None = None) -> Tensor:
        """z = mu + std * eps (paper: Section 2.4): mu, logvar (B, L), eps (..., B, L) -> like eps.

        Without `eps` one draw eps ~ N(0, I) is made: (B, L).
        """
        std = torch.exp(0.5 * logvar)
        if eps is None:
            eps = torch.randn_like(std)
        return mu + std * eps

    def decode(self, z: Tensor) -> Tensor:
        """p(x|z): z (..., B, L) -> logits (..., B, 1, 28, 28); their sigmoids are pixel means."""
        logits = self.decoder(z.flatten(0, -2)).float()
        return logits.view(*z.shape[:-1], *IMAGE_SHAPE) + self.output_bias

    def forward(self, x: Tensor, eps: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, 1, 28, 28) in [0, 1] -> logits of a posterior draw for each eps, mu, logvar (B, L).

        eps (..., B, L) -> logits (..., B, 1, 28, 28); without eps, one draw: (B, 1, 28, 28).
        """
        mu, logvar = self.encode(x)
        z = self.reparameterize(mu, logvar, eps)
        return self.decode(z), mu, logvar

    @torch.inference_mode()
    def sample(self, n: int, generator: Generator | None = None) -> Tensor:
        """n draws z ~ p(z), decoded to the pixels' means: (n, 1, 28, 28) in [0, 1]."""
        u = torch.randn(n, self.config.latent_dim, generator=generator, device=self.device)
        return torch.sigmoid(self.decode(self.prior.from_normal(u)))
