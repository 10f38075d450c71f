"""The benchmarks' own arithmetic: what they read from a run and compute from it. No times."""

from contextlib import nullcontext

import pytest
import torch
from torch.distributions import Normal
from torch.nn.utils import parameters_to_vector as flat

from benchmarks import conventional, seeds
from loss import bernoulli_nll, kl_divergence


def test_the_conventional_loop_descends_our_loss_and_validates_by_it():
    torch.manual_seed(1)
    model, x = conventional.Network(), torch.rand(8, 1, 28, 28)
    before = flat(model.parameters()).detach()
    assert before.shape == (652_824,)  # as in pytorch/examples
    torch.manual_seed(2)
    pixel_means, mu, logvar = model(x)
    loss = (bernoulli_nll(torch.logit(pixel_means), x) + kl_divergence(mu, logvar)).sum()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    torch.manual_seed(2)
    assert conventional.validate(model, [(x, None)]) == pytest.approx(loss.item(), rel=1e-5)
    torch.manual_seed(2)
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    assert conventional.train_one_epoch(model, sgd, [(x, None)]) == pytest.approx(loss.item())
    step = before - flat(model.parameters()).detach()
    torch.testing.assert_close(step, flat(gradients), rtol=1e-3, atol=1e-4)


def test_seeds_give_a_gaussian_decoder_its_best_variance(tiny_run, tmp_path, monkeypatch):
    best = dict.fromkeys(seeds.METRICS, 0.0) | {"epoch": 2, "run_seconds": 1.0}
    best |= {"val_recon_loss": 0.04, "val_kld_loss": 7.0}
    monkeypatch.setattr(seeds, "train", lambda command, folder: best)
    monkeypatch.setattr(seeds, "evaluate", lambda command, folder: {"neg_elbo": 0.0})
    monkeypatch.setattr(seeds, "TemporaryDirectory", lambda: nullcontext(tiny_run))
    row = seeds.measure("mse", "--recon_loss mse", 888, "", tmp_path)
    errors = torch.full((784,), 0.2)  # a squared error of 0.04 per pixel
    bounds = [7 - Normal(0, v**0.5).log_prob(errors).sum().item() for v in (0.038, 0.04, 0.042)]
    assert min(bounds) == bounds[1] == pytest.approx(row["gaussian_neg_elbo"], rel=1e-5)
