"""Pre-trained models by `torch.hub.load`: from Python to a trained VAE in one line."""

from pathlib import Path

from checkpoint import load_checkpoint as _load_checkpoint
from model import VAE as _VAE

dependencies = ["torch", "numpy"]


def vae_mnist(device: str = "cpu") -> _VAE:
    """The two-dimensional VAE of grey MNIST digits, in eval mode: encode(x), decode(z), sample(n)."""
    return _load_checkpoint(Path(__file__).resolve().parent / "pretrained" / "vae_mnist.pth", device)[0]
