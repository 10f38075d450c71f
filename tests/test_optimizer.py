"""AdamW against PyTorch's own, its averages and the learning rate against closed forms."""

import copy

import pytest
import torch
from conftest import random_model

from model import VAE
from optimizer import (
    AVERAGE_EVERY,
    AVERAGE_POWER,
    BETAS,
    EPS,
    WARMUP_STEPS,
    WEIGHT_DECAY,
    AdamW,
    learning_rate,
)


def resumed(model: VAE, optimizer: AdamW) -> tuple[VAE, AdamW]:
    """Both as a checkpoint of them brings them back."""
    with optimizer.averaged():
        weights, state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    model = random_model("conv", width=4)
    model.load_state_dict(weights)
    optimizer = AdamW(model.parameters())
    with optimizer.averaged():
        optimizer.load_state_dict(state)
    return model, optimizer


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
        model, ours = resumed(model, ours)
        torch.testing.assert_close([*model.parameters()], [*reference.parameters()])


def test_slow_parameters_have_a_learning_rate_of_their_own():
    """Each group moves as torch's AdamW moves it alone."""
    model, reference = random_model("mlp", width=4), random_model("mlp", width=4)
    ours = AdamW(model.parameters(), model.encoder.parameters(), weight_decay=0.3)
    encoder = {id(p) for p in reference.encoder.parameters()}
    groups = [
        {"params": [p for p in reference.parameters() if (id(p) in encoder) == is_slow], "lr": lr}
        for lr, is_slow in ((0.1, False), (0.03, True))
    ]
    theirs = torch.optim.AdamW(groups, betas=BETAS, eps=EPS, weight_decay=0.3)
    for _ in range(3):
        for parameter, other in zip(model.parameters(), reference.parameters(), strict=True):
            parameter.grad = torch.randn_like(parameter)
            other.grad = parameter.grad.clone()
        theirs.step()
        ours.step(0.1, 0.03)
        torch.testing.assert_close([*model.parameters()], [*reference.parameters()])


def test_the_average_weighs_the_steps_by_a_power():
    model = random_model("conv", width=4)
    ours, bias, history = AdamW(model.parameters()), model.output_bias, []
    for step in range(1, 50):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        ours.step(0.1)
        if step % AVERAGE_EVERY == 0 or step == 3:
            history.append(bias.detach().clone())
        if step == 3:  # until the first sum the last weights stand for it
            with ours.averaged():
                torch.testing.assert_close(bias.detach(), history.pop(), rtol=0, atol=0)
        if step == 29:
            model, ours = resumed(model, ours)
            bias = model.output_bias
    edges = torch.linspace(0, 1, len(history) + 1, dtype=torch.float64) ** (AVERAGE_POWER + 1)
    weights = edges.diff()  # the share of each in the integral of t^6
    expected = torch.einsum("s,schw->chw", weights, torch.stack(history).double())
    with ours.averaged():
        torch.testing.assert_close(bias.detach().double(), expected, rtol=1e-4, atol=1e-5)
    assert (bias - expected).abs().max() > 0.01


def test_the_learning_rate_warms_up_and_falls_as_a_parabola():
    n = 10_000
    rates = [learning_rate(step, n, 2.0) for step in range(n)]
    assert rates[0] == pytest.approx(2.0 / WARMUP_STEPS)
    assert max(rates) == pytest.approx(2.0, rel=0.02)
    assert rates[n // 2] == pytest.approx(2 / 4)
    assert rates[n // 4] == pytest.approx(2 * 9 / 16)
    assert rates[-1] < 1e-6
    assert learning_rate(2, 20, 1.0) == pytest.approx(0.9**2)  # a short run has a short warm-up
