"""A checkpoint: a file to rebuild a model from and, if last.pth, resume a run."""

import os
import zipfile
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

import torch

from model import VAE, VAEConfig
from utils.cli import UserError
from utils.files import write_file


def save_checkpoint(path: Path, model: VAE, args: Namespace, metrics: list[dict], **state) -> None:
    """Writes weights, config, metrics per epoch, and flags (numbers or text). Raises UserError.

    `args` must contain `dataset` and `binarize`; `state` adds the data needed to resume the run.
    """
    plain = {name: v for name, v in vars(args).items() if isinstance(v, int | float | str)}
    content = {"config": asdict(model.config), "args": plain, "metrics": metrics}
    content |= {"weights": model.state_dict()} | state
    write_file(path, lambda file: torch.save(content, file))


def load_checkpoint(path: str | Path, device: torch.device | str = "cpu") -> tuple[VAE, dict]:
    """The model in eval mode on `device`, and the stored dict on the CPU. Runs no code in the file.

    Raises UserError if the file is missing, damaged or not written by train.py.
    """
    problem = "damaged, or not a PyTorch file" if os.path.isfile(path) else "not a file"
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip():  # torch.load does not verify the checksums
                raise zipfile.BadZipFile
        problem = "a pickle of a whole model or of other Python objects"
        content = torch.load(path, map_location="cpu", weights_only=True)
        problem = "a file without a model's config, such as a bare state_dict"
        config = content["config"]
        problem = "not from this version of train.py"
        model = VAE(VAEConfig(**config))
        model.load_state_dict(content["weights"])
        if not {"dataset", "binarize"} <= content["args"].keys():
            raise KeyError("args")
    except Exception as error:  # the exceptions that invalid files cause are undocumented
        raise UserError(f"{path} is {problem}; give a .pth file that train.py wrote.") from error
    return model.to(device).eval(), content
