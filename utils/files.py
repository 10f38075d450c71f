"""Writes files completely or not at all."""

import os
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import BinaryIO

from utils.cli import UserError


def new_folder(path: Path) -> Path:
    """Creates `path` or, if taken, the first free of path_2, path_3, ... Raises UserError."""
    for n in count(1):
        folder = path.with_name(f"{path.name}_{n}") if n > 1 else path
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise cannot_write(folder, error) from error


def write_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Replaces a file with the output of `write` in one step; a crash leaves the old file intact.

    Raises UserError.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            try:
                write(file)
            except RuntimeError as error:  # torch.save raises it on a full disk or Ctrl-C
                raise (error.__context__ or error) from None
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()  # exists after an error or Ctrl-C


def cannot_write(path: Path, error: OSError) -> UserError:
    reason = error.strerror or error
    return UserError(f"{path} cannot be written ({reason}); choose another folder.")
