"""Checkpoints: plain dicts of plain types and tensors, written atomically, loaded safely.

A checkpoint holds {"format", "config", "weights", "args", "metrics"} and, where training can go
on from it, "training". It suffices to rebuild the model.
"""

import csv
import io
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from utils.cli import UserError
from utils.images import cannot_write

import torch

from model import VAE, VAEConfig
from optimizer import AdamW

try:
    import fcntl
except ImportError:  # Windows: nothing then keeps two runs apart
    fcntl = None

FORMAT = "vae-checkpoint-2"


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a temporary file, then moves it to `path`: a crash never leaves a partial file.

    Raises UserError if the disk is full or the folder read-only; what stood there is then intact.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()  # what an error or Ctrl-C leaves; after the move there is none


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Creates `folder` and keeps other runs out of it; the lock ends with the process.

    A folder in which nothing was written is removed again. Raises UserError if another run holds
    it or it cannot be written.
    """
    lock, is_new = folder / ".lock", not os.path.exists(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(lock, "w")  # noqa: SIM115  (its `with` is below, outside of this `try`)
    except OSError as error:
        raise cannot_write(folder, error) from error
    with file:
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another run is writing to {folder}; wait for it or choose another --save_dir."
            ) from error
        except OSError:
            pass  # a network file system without locks is no reason not to train
        try:
            yield
        finally:
            with suppress(OSError):
                if is_new and os.listdir(folder) == [lock.name]:
                    lock.unlink()
                    folder.rmdir()


def write_csv(path: Path, rows: list[dict]) -> None:
    """Rows with the same keys as a CSV file with a header. Raises UserError."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def save_checkpoint(
    path: str | Path,
    model: VAE,
    args: dict,
    metrics: list[dict],
    optimizer: AdamW | None = None,
) -> None:
    """Writes a checkpoint that is complete in itself. Raises UserError.

    `args`: the settings of the run, among them "dataset" and "binarize"; `metrics`: a row for each
    epoch so far; with the `optimizer` training can go on from it.
    """
    content = {"format": FORMAT, "config": asdict(model.config), "args": args, "metrics": metrics}
    content["weights"] = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    if optimizer:
        content["training"] = {"optimizer": optimizer.state_dict()}
    buffer = io.BytesIO()  # torch.save to a full disk does not say that it is full
    torch.save(content, buffer)
    write_atomically(Path(path), buffer.getbuffer())


def load_checkpoint(path: str | Path, device: torch.device | str = "cpu") -> tuple[VAE, dict]:
    """Rebuilds the model from the file alone: (the model in eval mode, the checkpoint's dict).

    Runs no code from the file (`weights_only=True`) and verifies its checksums first.
    Raises UserError for a file that is missing, damaged, or not one of ours.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise UserError(f"{path} is not a file; give the path of a .pth file that train.py wrote.")
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:  # torch.load does not compare the checksums
            inflated = sum(entry.file_size for entry in archive.infolist())
            if inflated > size or archive.testzip():  # ours are not compressed
                raise zipfile.BadZipFile
    except PermissionError as error:
        raise UserError(f"{path} cannot be read; ask its owner for access.") from error
    except Exception as error:  # zipfile's exceptions on hostile input are not documented
        raise UserError(f"{path} is damaged, or not a checkpoint; copy it again.") from error
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, not {FORMAT!r}")
        config = VAEConfig(**content["config"])
        with torch.device("meta"):  # which takes no memory
            n_weights = sum(parameter.numel() for parameter in VAE(config).parameters())
        if 2 * n_weights > size:  # half precision at least
            raise ValueError("it is too small for the model that it names")
        model = VAE(config)
        model.load_state_dict(content["weights"])
        if not all(torch.isfinite(parameter).all() for parameter in model.parameters()):
            raise ValueError("its weights are not all finite")
        args = content["args"]
        if not (isinstance(args, dict) and {"dataset", "binarize"} <= args.keys()):
            raise ValueError("it does not name its dataset")
        if not all(isinstance(row, dict) for row in content["metrics"]):
            raise ValueError("its metrics are not rows")
    except Exception as error:  # whatever a foreign or hostile file provokes
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} is not a checkpoint of this version of train.py: {reason}; train it again."
        ) from error
    return model.to(device).eval(), content
