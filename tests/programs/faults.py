"""What may happen to a run of train.py: each is a call that its process makes beforehand."""

import os
import resource
import signal
import sys
from collections.abc import Callable

import torch

import train
from model import VAE


def signal_at_write(n: int, number: int) -> None:
    """Sends a signal just before the n-th write: a file opened for it, moved or removed."""
    n_left = n

    def hook(event: str, args: tuple) -> None:
        nonlocal n_left
        opened = event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR)
        if opened or event in ("os.rename", "os.remove", "os.mkdir"):
            n_left -= 1
            if n_left == 0:
                os.kill(os.getpid(), number)

    sys.addaudithook(hook)


def sigterm_in_load() -> None:
    """Sends SIGTERM while a checkpoint is read."""
    torch.load = lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM)


def after_epoch_2(fault: Callable[[VAE], None]) -> None:
    """Calls `fault` when the second epoch has been trained, and not yet validated."""
    train_one_epoch = train.train_one_epoch

    def wrapped(model, optimizer, images, settings, epoch):
        result = train_one_epoch(model, optimizer, images, settings, epoch)
        if epoch == 2:
            fault(model)
        return result

    train.train_one_epoch = wrapped


def fill_disk(_: VAE) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))


def lose_folder(_: VAE) -> None:
    os.rename("run", "moved")
    open("run", "w").close()


def break_weights(model: VAE) -> None:
    next(model.parameters()).data.fill_(float("nan"))


def validation_gets_worse() -> None:
    """Makes the validation's KL one nat in the first epoch, two in the second, and so on."""
    validate, calls = train.validate, []

    def wrapped(*given):
        calls.append(None)
        return validate(*given) | {"val_kld_loss": float(len(calls))}

    train.validate = wrapped
