"""Devices and random streams."""

import json

import pytest
import torch
from conftest import ROOT, refusal, run_script

from utils.device import pick_device, rng


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there_is_one_sentence(trainer, tmp_path):
    assert pick_device("auto").type in ("cpu", "mps")
    assert "device cuda is not available" in refusal(trainer(tmp_path, "--device cuda"))
    assert not (tmp_path / "runs").exists()


def test_every_draw_of_a_run_has_a_stream_of_its_own():
    rests = ((), (0, 1), (0, 2), (1, 1))
    seeds = [(seed, epoch, *rest) for seed in range(3) for epoch in range(3) for rest in rests]
    draws = {tuple(torch.rand(4, generator=rng(*seed)).tolist()) for seed in seeds}
    assert len(draws) == len(seeds)


def test_a_pretended_gpu_computes_what_the_cpu_does():
    """Training, validation, a file for any device, resuming from it, samples, all estimators."""
    done = run_script("tests/fake_gpu.py", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert len(results) == 4
    for cpu, gpu in zip(results[::2], results[1::2], strict=True):
        assert gpu["values"] == pytest.approx(cpu["values"], rel=1e-4), gpu["run"]
