"""Checkpoints: plain dicts of plain types and tensors, written atomically, loaded safely, readable errors.

A checkpoint holds {"format", "config", "weights", "args", "metrics"} and, where training can go on from it, "training".
"""

import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from errors import UserError
from model import VAE, VAEConfig

try:
    import fcntl
except ImportError:  # Windows: nothing then keeps two runs apart
    fcntl = None

FORMAT = "vae-checkpoint-1"


def write_atomically(path: Path, write) -> None:
    """Calls `write(temporary_path)`, then moves that file to `path` in one step: never half a file, not at a power cut.

    Raises UserError if the disk is full or the folder cannot be written; what stood at `path` is then intact.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written ({error}); free some space or choose another --save_dir.") from error


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Creates `folder` and keeps other runs out of it; the lock ends with the process, however that ends.

    Raises UserError if another run holds it or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "w")  # noqa: SIM115  (its `with` is below, outside of this `try`)
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"another run is writing to {folder}; wait for it or choose another --save_dir.") from error
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); choose another --save_dir.") from error
    with file:
        yield


def save_checkpoint(path: str | Path, model: VAE, args: dict, metrics: list[dict], training: dict | None = None) -> None:
    """Writes a checkpoint that is complete in itself.

    `args`: the flags of the run (they name the dataset and its binarisation); `metrics`: a row for each epoch so far;
    `training`: what `--resume` needs beyond that. Raises UserError as `write_atomically` does.
    """
    content = {
        "format": FORMAT,
        "config": asdict(model.config),
        "weights": {name: tensor.cpu() for name, tensor in model.state_dict().items()},
        "args": args,
        "metrics": metrics,
    }
    if training is not None:
        content["training"] = training
    write_atomically(Path(path), lambda temporary: torch.save(content, temporary))


def load_checkpoint(path: str | Path, device: torch.device | str = "cpu") -> tuple[VAE, dict]:
    """Rebuilds the model from the file alone: (the model on `device`, in eval mode; the checkpoint's dict).

    Runs no code from the file (`weights_only=True`), and verifies its checksums first.
    Raises UserError for a file that is missing, damaged, or not one of ours.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not a file; give the path of a .pth file that train.py wrote.")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load does not compare the checksums
    except Exception as error:  # zipfile's exceptions on hostile input are not documented
        raise UserError(f"{path} is not a checkpoint, or is truncated or damaged; train again or copy it again.") from error
    if damaged is not None:
        raise UserError(f"{path} is damaged (wrong checksum in {damaged}); copy it again.")
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, this version reads {FORMAT!r}")
        config = VAEConfig(**content["config"])
        if not all(bool(torch.isfinite(tensor).all()) for tensor in content["weights"].values()):
            raise ValueError("its weights are not all finite")
        model = VAE(config)
        model.load_state_dict(content["weights"])
        content["args"]["dataset"], content["args"]["binarize"], list(content["metrics"])
    except Exception as error:  # whatever a foreign or hostile file provokes
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is not a checkpoint that train.py of this version wrote: {reason}.") from error
    return model.to(device).eval(), content
