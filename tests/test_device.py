"""Devices and random streams."""

import pytest
import torch
from conftest import refusal

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
