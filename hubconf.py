"""Pre-trained models for `torch.hub.load`: a trained VAE in one line of Python."""

import importlib
import sys
from pathlib import Path

dependencies = ["torch", "numpy"]
_ROOT = Path(__file__).resolve().parent
_NAMES = {"utils", *(path.stem for path in _ROOT.glob("*.py"))}


def _take_out() -> dict:
    """Removes and returns all loaded modules that share a name with ours."""
    names = [name for name in sys.modules if name.split(".")[0] in _NAMES - {__name__}]
    return {name: sys.modules.pop(name) for name in names}


def _import_ours() -> None:
    """Loads our modules as vae_hub_model etc.; the caller's `model`, `utils`, ... stay loaded."""
    callers = _take_out()
    sys.path.insert(0, str(_ROOT))
    try:
        importlib.import_module("checkpoint")
    finally:
        sys.path.remove(str(_ROOT))
        for name, module in _take_out().items():
            sys.modules[f"vae_hub_{name}"] = module
            for value in vars(module).values():
                if getattr(value, "__module__", None) == name:
                    value.__module__ = f"vae_hub_{name}"  # the module that pickle will import
        sys.modules.update(callers)


def _load(name: str, device: str):
    if "vae_hub_checkpoint" not in sys.modules:
        _import_ours()
    where = sys.modules["vae_hub_utils.device"].pick_device(device)
    path = _ROOT / "pretrained" / f"{name}.pth"
    return sys.modules["vae_hub_checkpoint"].load_checkpoint(path, where)[0]


def vae_mnist(device: str = "cpu"):
    """A 2-dimensional VAE (in eval mode) for grey digits: encode(x), decode(z), sample(n)."""
    return _load("vae_mnist", device)


def vae_mnist_2d_dynamic(device: str = "cpu"):
    """A 2-dimensional VAE trained on dynamically binarised digits."""
    return _load("vae_mnist_2d_dynamic", device)


def vae_mnist_40d(device: str = "cpu"):
    """A 40-dimensional VAE with a standard normal prior, trained on binarised digits."""
    return _load("vae_mnist_40d", device)


def vae_mnist_40d_flow(device: str = "cpu"):
    """A 40-dimensional VAE with a learned prior, from which `sample` draws."""
    return _load("vae_mnist_40d_flow", device)
