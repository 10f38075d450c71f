"""Training: a step equals one by hand, the loss falls, and a run leaves what it should."""

import math
from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, random_model, read_rows
from PIL import Image
from torch.distributions import Normal, kl_divergence
from torch.nn.utils import parameters_to_vector

import train
from checkpoint import load_checkpoint
from data import batches, load_mnist
from train import Run, best_row, build, learning_rate, parse_flags, run_epoch, validate
from utils.cli import DATA_DIR
from utils.device import rng


@pytest.fixture(scope="module")
def digits():
    return load_mnist(DATA_DIR, "train")[0][:512]


def flags(text=""):
    return parse_flags([*TINY, *text.split()])


def weights_of(model):
    return parameters_to_vector(model.parameters()).detach()


def loss_by_hand(model, x, args, step, noise):
    """The loss () of x (B, 1, 28, 28) in PyTorch's own terms, and recon, kl and nll (3, B)."""
    n_draws = args.n_importance_samples
    mu, logvar = model.encode(x)  # (B, L)
    q, prior = Normal(mu, logvar.exp().sqrt()), Normal(torch.zeros_like(mu), 1.0)
    z = mu + q.stddev * torch.randn(n_draws, *mu.shape, generator=noise)  # (K, B, L)
    logits = model.decode(z)
    x = x.double().expand_as(logits)
    nll = F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(dim=(2, 3, 4))
    recon = nll if args.recon_loss == "bce" else (logits.sigmoid() - x).pow(2).sum(dim=(2, 3, 4))
    kl = kl_divergence(q, prior)[None] if n_draws == 1 else q.log_prob(z) - prior.log_prob(z)
    kl, weight = kl.sum(dim=-1), min(1, (step + 1) / (args.kl_warmup + 1))
    log_w = -args.recon_weight / 784 * recon - weight * kl
    loss = (math.log(n_draws) - log_w.logsumexp(dim=0)).mean()
    return loss, torch.stack([part.mean(dim=0) for part in (recon, kl, nll)]).detach()


def two_epochs_by_hand(model, images, args):
    """The weights after each step, the largest gradient norm, and each epoch's terms (3, N)."""
    how = {"betas": (0.9, 0.99), "weight_decay": args.weight_decay, "foreach": False}
    optimizer = torch.optim.AdamW(model.parameters(), **how)
    n_steps = args.n_epochs * math.ceil(len(images) / args.batch_size)
    weights, norms, terms = [], [], []
    for noise in (rng(args.seed, 1), rng(args.seed, 2)):
        terms.append([])
        for x in batches(images, args.batch_size, args.binarize, noise):
            loss, of_batch = loss_by_hand(model, x, args, len(weights), noise)
            optimizer.zero_grad()
            loss.backward()
            norms.append(math.sqrt(sum(p.grad.pow(2).sum() for p in model.parameters())))
            for parameter in model.parameters():
                parameter.grad *= min(1, 1000 / norms[-1])
            optimizer.param_groups[0]["lr"] = learning_rate(len(weights), n_steps, args.lr)
            optimizer.step()
            weights.append(weights_of(model))
            terms[-1].append(of_batch)
    return torch.stack(weights), max(norms), [torch.cat(parts, dim=1) for parts in terms]


@pytest.mark.parametrize(
    ("text", "clips"),
    [
        ("--batch_size 128 --kl_warmup 3", False),
        ("--batch_size 16 --recon_loss mse --n_importance_samples 3 --binarize dynamic", False),
        ("--batch_size 128 --recon_weight 1e4 --weight_decay 0.5", True),
    ],
)
def test_two_of_four_epochs_are_those_by_hand(digits, text, clips):
    """300 images, so the last batch is smaller. In float64, for narrow tolerances."""
    args, images = flags(f"--n_epochs 4 {text}"), digits[:300]
    model = random_model().double()
    how = {"betas": train.BETAS, "weight_decay": args.weight_decay, "fused": True}
    average = deepcopy(model).requires_grad_(False)
    run = Run(model, average, torch.optim.AdamW(model.parameters(), **how), [])
    weights, norm, terms = two_epochs_by_hand(deepcopy(model), images, args)
    for _ in range(2):
        run_epoch(run, images, digits[300:], args)
    assert (norm > 1000) == clips
    torch.testing.assert_close(weights_of(model), weights[-1], rtol=0, atol=1e-9)

    every = 8 if 300 / args.batch_size > 7 else 1  # steps between those that count
    kept = weights[every - 1 :: every]
    edges = torch.linspace(0, 1, len(kept) + 1, dtype=torch.float64) ** 7
    expected = edges.diff() @ kept  # each counts as its share of the integral of t^6
    torch.testing.assert_close(weights_of(run.average), expected, rtol=0, atol=1e-9)
    for row, term in zip(run.metrics, terms, strict=True):
        recon, kl, nll = (sum(values.tolist()) / 300 for values in term)
        assert row["train_recon_loss"] == pytest.approx(recon / 784)
        assert row["train_kld_loss"] == pytest.approx(kl)
        assert row["train_neg_elbo"] == pytest.approx(nll + kl)


def test_deformations_fade_out_by_three_quarters_of_the_run(digits, monkeypatch):
    strengths, args = [], flags("--n_epochs 8 --deform 0.3")
    monkeypatch.setattr(train, "batches", lambda *given: strengths.append(given[-1]) or [])
    model, average, optimizer, _ = build(args, digits)
    for epoch in range(1, 9):
        list(train.train_one_epoch(model, average, optimizer, digits, args, epoch))
    assert strengths == pytest.approx([0.3, 0.25, 0.2, 0.15, 0.1, 0.05, 0, 0])


def test_the_learning_rate_warms_up_and_falls_as_a_parabola():
    rates = [learning_rate(step, 10_000, 2.0) for step in (0, 49, 99, 2500, 5000, 10_000)]
    expected = [2 / 100, 2 / 2 * 0.9951**2, 2 * 0.9901**2, 2 * 0.75**2, 2 * 0.5**2, 0]
    assert rates == pytest.approx(expected)
    assert learning_rate(0, 20, 1.0) == pytest.approx(1 / 2)  # a short run has a short warm-up


def test_best_is_the_lowest_loss_but_the_latest_where_training_lowers_another():
    values = [(0.3, 9), (0.2, 60), (0.25, 33), (0.27, 20)]  # losses 189, 180, 183, 182
    rows = [{"val_recon_loss": recon, "val_kld_loss": kl} for recon, kl in values]
    assert best_row(rows, flags()) is rows[1]
    assert best_row(rows, flags("--recon_weight 100")) is rows[0]
    assert best_row(rows, flags("--n_importance_samples 3")) is rows[3]


def test_a_new_run_starts_from_the_weights_it_is_given(digits, tiny_run):
    path = str(tiny_run / "last.pth")
    run = build(parse_flags(["--init_from", path]), digits)
    for model in (run.model, run.average):
        assert torch.equal(weights_of(model), weights_of(load_checkpoint(path)[0]))


def test_what_a_run_leaves(tiny_run):
    """Metrics and samples are those of the averaged weights, which are in "weights"."""
    rows = read_rows(tiny_run / "metrics.csv")
    names = ["recon_loss", "kld_loss", "neg_elbo"]
    columns = [f"{split}_{name}" for split in ("train", "val") for name in names]
    assert [*rows[0]] == ["epoch", *columns, "lr", "seconds"]
    assert "training" not in load_checkpoint(tiny_run / "best.pth")[1]
    model, last = load_checkpoint(tiny_run / "last.pth")
    assert [{name: str(value) for name, value in row.items()} for row in last["metrics"]] == rows
    val_images = load_mnist(DATA_DIR, "val")[0][:200]  # as in conftest.py
    for name, value in validate(model, val_images, flags()).items():
        assert last["metrics"][1][name] == pytest.approx(value)
    drawn = Image.open(tiny_run / "samples" / "epoch_0002.png")  # ten rows of ten
    first_row = torch.cat((*model.sample(100, rng(888))[:10, 0],), dim=1)  # (28, 280) in [0, 1]
    pixels = torch.from_numpy(np.array(drawn)[:28, :, 0]) / 255
    torch.testing.assert_close(pixels, first_row, rtol=0, atol=0.51 / 255)
    assert not torch.equal(last["training"]["output_bias"], model.output_bias)
