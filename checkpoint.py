"""Checkpoints: plain dicts of plain types and tensors, written atomically, loaded safely, readable errors.

A checkpoint holds {"format", "config", "weights", "args", "metrics"} and, where training can go on from it, "training".
"""

import csv
import io
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import torch

from data import BINARIZE, DATASETS
from errors import UserError
from model import VAE, VAEConfig

try:
    import fcntl
except ImportError:  # Windows: nothing then keeps two runs apart
    fcntl = None

FORMAT = "vae-checkpoint-1"


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a temporary file, then moves it to `path` in one step: never half a file, not at a power cut.

    Raises UserError if the disk is full or the folder cannot be written; what stood at `path` is then intact.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        reason = f"{error.strerror}; free some space or choose another --save_dir"
        raise UserError(f"{path} cannot be written: {reason}.") from error
    finally:
        with suppress(OSError):
            temporary.unlink()  # what an error or Ctrl-C leaves; after the move there is none


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Creates `folder` and keeps other runs out of it; the lock ends with the process, however that ends.

    Raises UserError if another run holds it or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "w")  # noqa: SIM115  (its `with` is below, outside of this `try`)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); choose another --save_dir.") from error
    with file:
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another run is writing to {folder}; wait for it or choose another --save_dir.") from error
        except OSError:
            pass  # a network file system without locks is no reason not to train
        yield


def write_csv(path: Path, rows: list[dict]) -> None:
    """Rows with the same keys as a CSV file with a header. Raises UserError as `write_atomically` does."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def save_checkpoint(path: str | Path, model: VAE, args: dict, metrics: list[dict], training: dict | None = None) -> None:
    """Writes a checkpoint that is complete in itself.

    `args`: the flags of the run (they name the dataset and its binarisation); `metrics`: a row for each epoch so far;
    `training`: what `--resume` needs beyond that. Raises UserError as `write_atomically` does.
    """
    weights = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    content = {"format": FORMAT, "config": asdict(model.config), "weights": weights, "args": args, "metrics": metrics}
    if training is not None:
        content["training"] = training
    buffer = io.BytesIO()  # torch.save to a full disk does not say that it is full
    torch.save(content, buffer)
    write_atomically(Path(path), buffer.getbuffer())


def load_checkpoint(path: str | Path, device: torch.device | str = "cpu") -> tuple[VAE, dict]:
    """Rebuilds the model from the file alone: (the model on `device`, in eval mode; the checkpoint's dict).

    Runs no code from the file (`weights_only=True`), and verifies its checksums first.
    Raises UserError for a file that is missing, damaged, or not one of ours.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not a file; give the path of a .pth file that train.py wrote.")
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > size:
                raise zipfile.BadZipFile("it would unpack to more than its size, and ours are not compressed")
            if damaged := archive.testzip():  # torch.load does not compare the checksums
                raise zipfile.BadZipFile(f"wrong checksum in {damaged}")
    except PermissionError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); ask its owner for access.") from error
    except Exception as error:  # zipfile's exceptions on hostile input are not documented
        raise UserError(f"{path} is not a checkpoint, or is truncated or damaged; train again or copy it again.") from error
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        if content.get("format") != FORMAT:
            raise ValueError(f"its format is {content.get('format')!r}, this version reads {FORMAT!r}")
        config = VAEConfig(**content["config"])
        with torch.device("meta"):  # which takes no memory
            if sum(2 * parameter.numel() for parameter in VAE(config).parameters()) > size:  # half precision at least
                raise ValueError("it is too small for the model that it names")
        model = VAE(config)
        model.load_state_dict(content["weights"])
        if not all(torch.isfinite(parameter).all() for parameter in model.parameters()):
            raise ValueError("its weights are not all finite")
        if content["args"]["dataset"] not in DATASETS or content["args"]["binarize"] not in BINARIZE:
            raise ValueError("its dataset or binarisation is not one of ours")
        if not all(isinstance(row, dict) for row in content["metrics"]):
            raise ValueError("its metrics are not rows")
    except Exception as error:  # whatever a foreign or hostile file provokes
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is not a checkpoint that train.py of this version wrote: {reason}.") from error
    return model.to(device).eval(), content
