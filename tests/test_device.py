"""Devices: one that is missing, and one that is pretended."""

import json

import pytest
import torch
from conftest import ROOT, refusal, run_script

from utils.device import pick_device


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there_is_one_sentence(trainer, tmp_path):
    assert pick_device("auto").type in ("cpu", "mps")
    assert "device cuda is not available" in refusal(trainer(tmp_path, "--device cuda"))
    assert not (tmp_path / "runs").exists()


def test_a_pretended_gpu_computes_what_the_cpu_does():
    """Training, validation, a file for any device, resuming from it, samples, all estimators."""
    done = run_script("tests/fake_gpu.py", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert len(results) == 4
    for cpu, gpu in zip(results[::2], results[1::2], strict=True):
        assert gpu == pytest.approx(cpu, rel=1e-4)
