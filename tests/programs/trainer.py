"""Runs train.py again and again but imports it once: each line of JSON on stdin is one run.

Each run is a forked child, whose exit code is the answer. The validation images are few, for speed.
"""

import json
import os
import sys
import traceback

import faults
import torch

import data
import train
from utils import cli


def run(folder: str, flags: list[str], before: str) -> int:
    os.chdir(folder)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = ["train.py", *flags]
    try:
        exec(before, vars(faults))
        cli.run(train.main)
        return 0
    except SystemExit as end:
        return end.code
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()


torch.set_num_threads(1)
torch.optim.AdamW([torch.zeros(1)])  # the first optimizer imports PyTorch's compiler
for split in ("train", "val"):
    data.load_mnist(cli.DATA_DIR, split)  # which caches the archives
data.SPLITS["val"] = ("train", 60_000, slice(50_000, 50_200))
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os._exit(run(**json.loads(line)))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
