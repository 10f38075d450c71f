"""The pre-trained models by `torch.hub.load`, from a folder that knows nothing of this one."""

import os
import subprocess
import sys

from conftest import ROOT

PROGRAM = """
import sys, torch
for name in ("vae_mnist", "vae_mnist_2d_dynamic", "vae_mnist_40d", "vae_mnist_40d_flow"):
    model = torch.hub.load(sys.argv[1], name, source="local")
    print(name, model.config.latent_dim, model.config.prior, model.training, *model.sample(3).shape)
"""


def test_the_models_load_from_another_folder(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command, how = [sys.executable, "-c", PROGRAM, ROOT], {"capture_output": True, "text": True}
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=False, **how)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "vae_mnist 2 normal False 3 1 28 28",
        "vae_mnist_2d_dynamic 2 normal False 3 1 28 28",
        "vae_mnist_40d 40 normal False 3 1 28 28",
        "vae_mnist_40d_flow 40 flow False 3 1 28 28",
    ]
