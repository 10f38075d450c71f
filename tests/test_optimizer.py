"""AdamW against PyTorch's own, and the learning rate."""

import math

import pytest
import torch
from conftest import random_model

from optimizer import BETAS, EPS, WARMUP_STEPS, WEIGHT_DECAY, AdamW, learning_rate


def test_a_step_is_that_of_torchs_adamw_and_its_state_suffices_to_go_on():
    model, reference = random_model("conv", width=4), random_model("conv", width=4)
    ours = AdamW(model.parameters())
    how = {"betas": BETAS, "eps": EPS, "weight_decay": WEIGHT_DECAY}
    theirs = torch.optim.AdamW(reference.parameters(), **how)
    for step in range(6):
        for parameter, other in zip(model.parameters(), reference.parameters(), strict=True):
            parameter.grad = torch.randn_like(parameter)
            other.grad = parameter.grad.clone()
        theirs.param_groups[0]["lr"] = lr = 0.1 / (step + 1)
        theirs.step()
        ours.step(lr)
        torch.testing.assert_close([*model.parameters()], [*reference.parameters()])
        resumed = AdamW(model.parameters())
        resumed.load_state_dict(ours.state_dict())
        ours = resumed


def test_the_learning_rate_warms_up_and_falls_as_a_cosine():
    n = 10_000
    rates = [learning_rate(step, n, 2.0) for step in range(n)]
    assert rates[0] == pytest.approx(2.0 / WARMUP_STEPS)
    assert max(rates) == pytest.approx(2.0, rel=0.02)
    assert rates[n // 2] == pytest.approx(1.0)
    assert rates[n // 4] == pytest.approx(1 + math.cos(math.pi / 4))
    assert rates[-1] < 1e-6
    assert learning_rate(2, 20, 1.0) > 0.9  # a short run has a short warm-up
