"""Runs train.py again and again without paying its imports: each line of JSON it reads is one run.

For each it forks a child that is that run, sends it a signal if asked to, and answers with its exit
code. The validation images are few, for speed.
"""

import json
import os
import sys
import time
import traceback
from pathlib import Path

import faults
import torch

import data
import train
from utils import cli


def run(job: dict) -> int:
    os.chdir(job["folder"])
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = ["train.py", *job["flags"]]
    try:
        exec(job["before"], vars(faults))
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
for split in ("train", "val"):
    data.load_mnist(cli.DATA_DIR, split)  # which is remembered
data.SPLITS["val"] = ("train", 60_000, slice(50_000, 50_500))
for line in sys.stdin:
    job = json.loads(line)
    start, output = None, Path(job["folder"], "stdout")
    output.write_text("")
    child = os.fork()
    if child == 0:
        os._exit(run(job))
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if start is None and job["once"] in output.read_text():
            start = time.monotonic()
        waits = start is not None and job["after"] is not None
        if waits and time.monotonic() - start >= job["after"]:
            os.kill(child, job["signal"])
            job["after"] = None
        time.sleep(0.002)
    print(os.waitstatus_to_exitcode(ended[1]), flush=True)
