"""train.py as one of torchrun's processes; at its end it leaves behind what it computed and wrote.

With DIES=1 in the environment the second process is killed when it has trained its first epoch.
"""

import json
import os
import signal
import sys

from utils import cli, device

import torch

import train

rank, batches, validate = int(os.environ["RANK"]), train.batches, train.validate
seen = {"orders": [], "figures": [], "wrote": []}


def note_order(images, order, *how):
    seen["orders"].append(order.tolist())
    return batches(images, order, *how)


def note_figures(model, images, settings):
    if rank == 1 and os.environ.get("DIES"):
        os.kill(os.getpid(), signal.SIGKILL)
    means = [torch.full((2, 3), float(rank)), torch.arange(4.0) * rank]
    device.average_over_processes(means)
    seen["means"] = [mean.tolist() for mean in means]
    seen["figures"].append(validate(model, images, settings))
    seen["weights"] = {name: tensor.tolist() for name, tensor in model.state_dict().items()}
    return seen["figures"][-1]


def note_writes(event, args):
    opened = event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR)
    if (opened or event in ("os.rename", "os.mkdir")) and "run" in str(args[0]).split(os.sep):
        seen["wrote"].append(str(args[0]))


train.batches, train.validate = note_order, note_figures
sys.addaudithook(note_writes)
try:
    cli.run(train.main)
finally:
    with open(f"rank_{rank}.json", "w") as file:
        json.dump(seen, file)
