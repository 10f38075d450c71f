"""Pre-trained models by `torch.hub.load`: from Python to a trained VAE in one line."""

from utils.checkpoint import load_checkpoint as _load_checkpoint
from utils.cli import ROOT as _ROOT

from model import VAE as _VAE

dependencies = ["torch", "numpy", "PIL"]


def _load(name: str, device: str) -> _VAE:
    return _load_checkpoint(_ROOT / "pretrained" / f"{name}.pth", device)[0]


def vae_mnist(device: str = "cpu") -> _VAE:
    """The two-dimensional VAE of grey digits, in eval mode: encode(x), decode(z), sample(n)."""
    return _load("vae_mnist", device)


def vae_mnist_2d_dynamic(device: str = "cpu") -> _VAE:
    """The two-dimensional VAE of dynamically binarised digits."""
    return _load("vae_mnist_2d_dynamic", device)


def vae_mnist_40d(device: str = "cpu") -> _VAE:
    """The VAE of 40 dimensions with a standard normal prior; binarised digits."""
    return _load("vae_mnist_40d", device)


def vae_mnist_40d_flow(device: str = "cpu") -> _VAE:
    """The same with a learned prior, which `sample` draws from."""
    return _load("vae_mnist_40d_flow", device)
