"""Flags, and how a user's mistake is reported. Imports nothing slow, so that it can come first."""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA_DIR = ROOT / "datasets"
SEED = 888  # of all that draws at random, unless --seed says otherwise
MAX_BATCH_SIZE = 8192


class UserError(Exception):
    """One sentence that names what is wrong and what to do; `run` prints it and exits with 2."""


_previous_hook = sys.excepthook  # that of a program which imports us, or Python's own


def _hook(kind: type, error: BaseException, traceback: object) -> None:
    """Ctrl-C while a script still imports its libraries needs no traceback."""
    if kind is not KeyboardInterrupt:
        _previous_hook(kind, error, traceback)


sys.excepthook = _hook


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that are there."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def parser(description: str) -> argparse.ArgumentParser:
    """A parser that shows its defaults and takes no abbreviated flags."""
    return argparse.ArgumentParser(
        description=description,
        allow_abbrev=False,
        formatter_class=_HelpFormatter,
    )


def _between(kind: type, name: str, low: float, high: float) -> Callable[[str], float]:
    """A flag type: a number of this kind from `low` to `high`; rejects nan."""

    def parse(text: str) -> float:
        with suppress(ValueError):
            if low <= (value := kind(text)) <= high:
                return value
        raise argparse.ArgumentTypeError(f"must be a {name} from {low} to {high}, not {text!r}")

    return parse


integer, number = partial(_between, int, "whole number"), partial(_between, float, "number")


def add_seed_flag(parser: argparse.ArgumentParser) -> None:
    """--seed, for scripts that draw at random."""
    seeds = integer(0, 2**31 - 1)
    parser.add_argument("--seed", type=seeds, default=SEED, help="of every random draw")


def add_common_flags(parser: argparse.ArgumentParser, batch_size: int) -> None:
    """--batch_size --data_dir --device --precision"""
    add = parser.add_argument
    batch_sizes = integer(1, MAX_BATCH_SIZE)
    add("--batch_size", type=batch_sizes, default=batch_size, help="images a batch")
    add("--data_dir", type=Path, default=DATA_DIR, help="folder that holds <dataset>/raw/*.gz")
    devices = ("auto", "cpu", "cuda", "mps")
    add("--device", choices=devices, default="auto", help="where to compute")
    precisions = ("auto", "fp32", "bf16")
    add("--precision", choices=precisions, default="auto", help="of the matrix products")


def run(main: Callable[[], None]) -> None:
    """Calls a script's main. A user's mistake becomes one sentence and exit code 2.

    A signal becomes 128 + its number.
    """

    def terminate(number: int, _: object) -> None:
        # Ends a run as Ctrl-C does: no `except Exception` holds it up.
        raise KeyboardInterrupt(number)

    signal.signal(signal.SIGTERM, terminate)
    try:
        main()
        sys.stdout.flush()  # here, where a broken pipe is caught
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        sys.exit(128 + (stop.args[0] if stop.args else signal.SIGINT))
    except BrokenPipeError:  # the reader of our output has gone, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
