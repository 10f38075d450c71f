"""Command-line flags and error messages, shared by all scripts."""

import argparse
import math
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
DATA_DIR = ROOT / "datasets"
SEED = 888


class UserError(Exception):
    """A user's mistake and its remedy, in one sentence that `run` prints before it exits with 2."""


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of a flag unless it is None."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def parser(description: str) -> argparse.ArgumentParser:
    """A parser that shows defaults, rejects abbreviated flags and expands ~ in paths."""
    parser = argparse.ArgumentParser(
        sys.argv[0], description=description, allow_abbrev=False, formatter_class=_HelpFormatter
    )
    parser.register("type", Path, lambda text: Path(os.path.expanduser(text)))
    return parser


def number(low: float, high: float = math.inf) -> Callable[[str], float]:
    """A type for flags: a number (whole if `low` is an int) from `low` to `high`."""
    kind = type(low)

    def parse(text: str) -> float:
        with suppress(ValueError):
            if low <= (value := kind(text)) <= high:
                return value
        name = {int: "a whole number", float: "a number"}[kind]
        limit = f"from {low} to {high}" if high < math.inf else f"of at least {low}"
        raise argparse.ArgumentTypeError(f"must be {name} {limit}, not {text!r}")

    return parse


def add_seed_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --seed, for scripts that use random numbers."""
    parser.add_argument("--seed", type=number(0, 2**63 - 1), default=SEED, help="random seed")


def add_common_flags(parser: argparse.ArgumentParser, batch_size: int) -> None:
    """Adds --batch_size, --data_dir, --device and --precision."""
    add = parser.add_argument
    add("--batch_size", type=number(1), default=batch_size, help="images per batch")
    add("--data_dir", type=Path, default=DATA_DIR, help="folder that holds <dataset>/raw/*.gz")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to compute")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="for matrix products")


def run(main: Callable[[], None]) -> None:
    """Calls a script's main. On a UserError, prints it and exits with 2; on Ctrl-C, with 130."""
    torch.backends.cudnn.deterministic = True  # so that resumed runs match bit for bit
    torch.backends.cudnn.allow_tf32 = False  # "fp32" means float32, not TF32
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # a notebook's streams need no encoding
            stream.reconfigure(errors="backslashreplace")  # writes \u03a9 if it cannot encode Omega
    try:
        main()
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        if "tried to allocate" not in str(error).lower():  # PyTorch's wording on every device
            raise
        print("error: out of memory; use a smaller --batch_size.", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has exited, as in `... | head`
        os._exit(141)
