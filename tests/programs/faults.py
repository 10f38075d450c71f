"""What may happen to a run of train.py: each is a call that its process makes beforehand."""

import os
import resource
import signal
import sys
from collections.abc import Callable

import train
from model import VAE


def kill_at_call(n: int) -> None:
    """Kills the process at the n-th event (a call or a return of a function) from now on."""
    n_left = n

    def hook(*_) -> None:
        nonlocal n_left
        n_left -= 1
        if n_left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(hook)


def signal_at_write(n: int, number: int) -> None:
    """Sends a signal just before the n-th write: a file that is opened for it, or renamed."""
    n_left = n

    def hook(event: str, args: tuple) -> None:
        nonlocal n_left
        if event == "os.rename" or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR)):
            n_left -= 1
            if n_left == 0:
                os.kill(os.getpid(), number)

    sys.addaudithook(hook)


def in_epoch_2(fault: Callable[[VAE], None]) -> None:
    """Calls `fault` after the last step of the second epoch, before its validation."""
    train_one_epoch = train.train_one_epoch

    def wrapped(model, average, optimizer, images, args, epoch):
        yield from train_one_epoch(model, average, optimizer, images, args, epoch)
        if epoch == 2:
            fault(model)

    train.train_one_epoch = wrapped


def press_ctrl_c(_: VAE) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def fill_disk(_: VAE) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))


def lose_folder(_: VAE) -> None:
    os.rename("run", "moved")
    open("run", "w").close()


def break_weights(model: VAE) -> None:
    next(model.parameters()).data.fill_(float("nan"))
