"""The losses of docs/losses.md, each as its repository writes it, against flags of train.py."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from torch.distributions import Normal, kl_divergence

import loss
import train

B, L = 4, 256
RNG = torch.Generator().manual_seed(0)
PAGE = (ROOT / "docs" / "losses.md").read_text()
ROW = r"^\| \[(\S+)\].*\| (beta|variance) ([\d.]+).*\| `(bce|mse) ([\d.]+)`"
PAGE_ROWS = {name: rest for name, *rest in re.findall(ROW, PAGE, re.MULTILINE)}
SHAPES = {"AntixK/PyTorch-VAE": (3, 64, 64), "lightning-bolts": (3, 32, 32)}  # else (1, 28, 28)


def bce(x, y):
    return F.binary_cross_entropy(y, x, reduction="sum")


def pad(pixels):
    """Pixels of 28 x 28 in [0, 1] as KimRass/VAE has them: in [-1, 1], black around."""
    return F.pad(2 * pixels - 1, (2, 2, 2, 2), value=-1)


LOSSES = {  # of images x and pixel means y (B, C, H, W), and the KL of each dimension kl (B, L)
    "pytorch/examples": lambda x, y, kl: bce(x, y) + kl.sum(),
    "keras-io": lambda x, y, kl: bce(x, y) / B + kl.sum(dim=1).mean(),
    "pyro": lambda x, y, kl: bce(x, y) + kl.sum(),
    "numpyro": lambda x, y, kl: bce(x, y) + kl.sum(),
    "tensorflow/docs": lambda x, y, kl: bce(x, y) / B + kl.sum(dim=1).mean(),
    "NYU-DLSP20": lambda x, y, kl: bce(x, y) + 1 * kl.sum(),
    "stat453": lambda x, y, kl: F.mse_loss(y, x, reduction="sum") / B + kl.sum(dim=1).mean(),
    "mlx-examples": lambda x, y, kl: F.mse_loss(y, x, reduction="sum") + kl.sum(),
    "pythae": lambda x, y, kl: (0.5 * (y - x).square().flatten(1).sum(1) + kl.sum(1)).mean(),
    "AntixK/PyTorch-VAE": lambda x, y, kl: F.mse_loss(y, x) + 0.00025 * kl.sum(dim=1).mean(),
    "lightning-bolts": lambda x, y, kl: F.mse_loss(y, x) + 0.1 * kl.mean(),
    "KimRass/VAE": lambda x, y, kl: 600 * F.mse_loss(pad(y), pad(x)) + kl.sum(dim=1).mean(),
    "ours": lambda x, y, kl: 600 * F.binary_cross_entropy(y, x) + kl.sum(dim=1).mean(),
}


def draw(shape, scale=1.0):
    """x, logits (B, *shape) and the KL of each dimension (B, L), which grows with `scale`."""
    x = torch.rand(B, *shape, generator=RNG, dtype=torch.float64)
    logits = 4 * torch.randn(B, *shape, generator=RNG, dtype=torch.float64)
    mu, logvar = torch.randn(2, B, L, generator=RNG, dtype=torch.float64)
    posterior = Normal(scale * mu, torch.exp(0.5 * logvar))
    return x, logits, kl_divergence(posterior, Normal(torch.zeros_like(mu), 1))


def test_the_page_has_each_loss_and_no_other():
    assert PAGE_ROWS.keys() == LOSSES.keys()
    assert len(PAGE.encode()) < 9_000


@pytest.mark.parametrize("name", LOSSES)
def test_the_flags_of_the_page_are_the_loss_up_to_a_factor(name):
    *_, recon_loss, weight = PAGE_ROWS[name]
    args = train.parse_flags(["--recon_loss", recon_loss, "--recon_weight", weight])
    recon_of = {"bce": loss.bernoulli_nll, "mse": loss.squared_error}[args.recon_loss]
    ratios = []
    for scale in (0.1, 1.0, 5.0):  # the factor is the same, whatever the KL's share
        x, logits, kl = draw((1, 28, 28), scale)
        recon, our_kl = recon_of(logits, x)[None], kl.sum(dim=1)[None]
        ours = loss.negative_bound(recon, our_kl, args.recon_weight)
        ratios.append((LOSSES[name](x, torch.sigmoid(logits), kl) / ours).item())
    assert ratios == pytest.approx([ratios[0]] * 3, rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_at_its_own_size_the_loss_is_the_beta_or_the_variance_of_the_page(name):
    kind, value, *_ = PAGE_ROWS[name]
    x, logits, kl = draw(SHAPES.get(name, (1, 28, 28)))
    pairs = []  # theirs and the truth, both in units of the summed KL
    for y in torch.sigmoid(logits), torch.full_like(x, 0.5):
        theirs, no_kl = LOSSES[name](x, y, kl), LOSSES[name](x, y, 0 * kl)
        truth = -Normal(y, math.sqrt(float(value))).log_prob(x).sum()
        if kind == "beta":
            truth = bce(x, y) / float(value)
        pairs.append((theirs / (theirs - no_kl), truth / kl.sum()))
    (theirs, truth), (their_start, start) = pairs  # less a start: without a Gaussian's constant
    assert (theirs - their_start).item() == pytest.approx((truth - start).item(), rel=1e-3)
