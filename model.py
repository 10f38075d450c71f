"""The variational autoencoder: an encoder to (mu, logvar), the reparameterization, a decoder to logits.

Paper: Kingma and Welling, Auto-Encoding Variational Bayes (2014), https://arxiv.org/abs/1312.6114.
Two architectures, both plain residual networks without normalisation: each block adds to its input a correction
that starts at zero, so a deep stack starts as a shallow one (the idea of Fixup, Zhang et al. 2019).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from prior import FlowPrior, NormalPrior

ARCHS = ("mlp", "conv")
PRIORS = ("normal", "flow")
WIDTHS = {"mlp": 512, "conv": 64}  # the default of each
IMAGE_SHAPE = (1, 28, 28)
N_PIXELS = 784
MAX_LATENT_DIM, MAX_WIDTH, MAX_BLOCKS = 1024, 4096, 64


@dataclass(frozen=True)
class VAEConfig:
    """All that is needed to rebuild a model; it travels in every checkpoint. Raises ValueError for bad values."""

    arch: str = "mlp"
    latent_dim: int = 2  # L
    width: int = 512  # hidden units of "mlp", channels of "conv"
    n_blocks: int = 3  # residual blocks of the decoder; the encoder has one less, but in "conv" at least one
    prior: str = "normal"  # a "flow" is learned; it needs two dimensions

    def __post_init__(self):
        for name, choices in {"arch": ARCHS, "prior": PRIORS}.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}")
        limits = {"latent_dim": MAX_LATENT_DIM, "width": MAX_WIDTH, "n_blocks": MAX_BLOCKS}
        for name, limit in limits.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= limit:
                raise ValueError(f"{name} must be a whole number from 1 to {limit}, not {value!r}")
        if self.prior == "flow" and self.latent_dim < 2:
            raise ValueError("latent_dim must be at least 2 with a flow for a prior, not 1")


class Linear(nn.Linear):
    """x W + b with W stored as (in, out), the transpose of nn.Linear's: the layout in which autograd returns its gradient.

    That saves a transposing copy of each gradient at each step, a quarter of the time of an epoch on two CPU cores.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        super().__init__(in_features, out_features, bias)
        self.weight = nn.Parameter(self.weight.detach().t().contiguous())

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight if self.bias is None else torch.addmm(self.bias, x, self.weight)


class Residual(nn.Module):
    """x + f(x), where f is two layers, each behind a SiLU, and the last layer starts at zero. Shapes stay as they are."""

    def __init__(self, first: nn.Module, last: nn.Module):
        super().__init__()
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.f = nn.Sequential(nn.SiLU(), first, nn.SiLU(), last)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(x)


def linear_blocks(width: int, n: int) -> list[nn.Module]:
    """(B, width) -> (B, width)"""
    return [Residual(Linear(width, width), Linear(width, width)) for _ in range(n)]


def conv_blocks(width: int, n: int) -> list[nn.Module]:
    """(B, width, H, W) -> (B, width, H, W)"""
    return [Residual(nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)) for _ in range(n)]


class Shortcut(nn.Module):
    """Fully connected layers beside one linear map: x W + b + f(x), where f starts at zero. (B, n_in) -> (B, n_out)."""

    def __init__(self, n_in: int, hidden: int, n_out: int):
        super().__init__()
        self.linear = Linear(n_in, n_out)
        last = Linear(hidden, n_out, bias=False)
        nn.init.zeros_(last.weight)
        self.f = nn.Sequential(Linear(n_in, hidden), *linear_blocks(hidden, 1), nn.SiLU(), last)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.f(x)


class Encoder(nn.Sequential):
    """x (B, 1, 28, 28) in [0, 1] -> (B, 2L): mu beside the logit of the variance."""

    def __init__(self, config: VAEConfig):
        width, head = config.width, 2 * config.latent_dim
        if config.arch == "mlp":
            layers = [nn.Flatten(), Linear(N_PIXELS, width)]  # (B, width)
            layers += linear_blocks(width, config.n_blocks - 1)
            layers += [nn.SiLU(), Linear(width, head)]
        else:
            half = (width + 1) // 2
            layers = [nn.PixelUnshuffle(2), nn.Conv2d(4, half, 3, padding=1)]  # (B, 4, 14, 14), (B, half, 14, 14)
            layers += conv_blocks(half, config.n_blocks - 2)
            layers += [nn.SiLU(), nn.PixelUnshuffle(2), nn.Conv2d(4 * half, width, 1)]  # (B, width, 7, 7)
            layers += conv_blocks(width, 1)
            layers += [nn.SiLU(), nn.Flatten(), Shortcut(49 * width, 8 * width, head)]
        super().__init__(*layers)


class Decoder(nn.Sequential):
    """z (B, L) -> (B, 784) or (B, 1, 28, 28): logits, before the output bias."""

    def __init__(self, config: VAEConfig):
        width, latent_dim = config.width, config.latent_dim
        if config.arch == "mlp":
            layers = [Linear(latent_dim, width), *linear_blocks(width, config.n_blocks)]  # (B, width)
            layers += [nn.SiLU(), Linear(width, N_PIXELS, bias=False)]
        else:
            half = (width + 1) // 2
            layers = [Shortcut(latent_dim, 8 * width, 49 * width), nn.Unflatten(1, (width, 7, 7))]  # (B, width, 7, 7)
            layers += conv_blocks(width, 1)
            layers += [nn.SiLU(), nn.Conv2d(width, 4 * half, 1), nn.PixelShuffle(2)]  # (B, half, 14, 14)
            layers += conv_blocks(half, config.n_blocks - 1)
            layers += [nn.SiLU(), nn.Conv2d(half, 4, 3, padding=1, bias=False), nn.PixelShuffle(2)]
        super().__init__(*layers)


class VAE(nn.Module):
    """p(x|z) p(z) and q(z|x): see `encode`, `reparameterize`, `decode`, `forward`, `sample`.

    `mean_image` (1, 28, 28) in [0, 1]: the training images' mean, whose logit the output bias starts from.
    """

    def __init__(self, config: VAEConfig, mean_image: Tensor | None = None):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.prior = FlowPrior(config.latent_dim) if config.prior == "flow" else NormalPrior()
        bias = torch.zeros(IMAGE_SHAPE) if mean_image is None else torch.logit(mean_image, eps=1e-3)
        self.output_bias = nn.Parameter(bias)  # (1, 28, 28)
        self.to(memory_format=torch.channels_last)  # the layout in which convolutions are fastest

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """q(z|x) = N(mu, diag exp(logvar)): x (B, 1, 28, 28) in [0, 1] -> mu (B, L), logvar (B, L) at most 0.

        The variance is a sigmoid: never above 1, the standard normal's, to which it tends where x says nothing. Without a
        bound, the exponential of one odd image's logvar ends a long run in infinities.
        """
        mu, variance_logit = self.encoder(x).float().chunk(2, dim=1)
        return mu, F.logsigmoid(variance_logit)

    def reparameterize(self, mu: Tensor, logvar: Tensor, eps: Tensor | None = None) -> Tensor:
        """z = mu + std * eps, with eps ~ N(0, I) drawn here unless it is given (paper: Section 2.4).

        mu, logvar (B, L) and eps (..., B, L) -> z (..., B, L).
        """
        std = torch.exp(0.5 * logvar)
        if eps is None:
            eps = torch.randn_like(std)
        return mu + std * eps

    def decode(self, z: Tensor) -> Tensor:
        """p(x|z): z (..., B, L) -> logits (..., B, 1, 28, 28); sigmoid(logits) are the pixels' means."""
        return self.decoder(z.flatten(0, -2)).float().view(*z.shape[:-1], *IMAGE_SHAPE) + self.output_bias

    def forward(self, x: Tensor, eps: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, 1, 28, 28) in [0, 1] -> logits of a posterior draw for each eps, mu (B, L), logvar (B, L).

        eps (..., B, L) -> logits (..., B, 1, 28, 28); without eps, one draw: (B, 1, 28, 28).
        """
        mu, logvar = self.encode(x)
        z = self.reparameterize(mu, logvar, eps)
        return self.decode(z), mu, logvar

    @torch.inference_mode()
    def sample(self, n: int, generator: Generator | None = None) -> Tensor:
        """n draws z ~ p(z), decoded to the pixels' means: (n, 1, 28, 28) in [0, 1]."""
        u = torch.randn(n, self.config.latent_dim, generator=generator, device=self.output_bias.device)
        return torch.sigmoid(self.decode(self.prior.from_normal(u)))
