"""Training: it learns, it logs what it says, and a resumed run is the uninterrupted one."""

import csv
import math
import signal

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, liven, one_sentence
from torch.distributions import Independent, Normal

import cli
import train
from checkpoint import load_checkpoint
from data import DATA_DIR, fixed_binarization, load_mnist
from loss import bernoulli_nll, kl_divergence
from model import VAE, VAEConfig

COLUMNS = [
    "epoch",
    "train_recon_loss",
    "train_kld_loss",
    "train_neg_elbo",
    "val_recon_loss",
    "val_kld_loss",
    "val_neg_elbo",
    "lr",
    "seconds",
]


def flags(monkeypatch, tmp_path, *given):
    monkeypatch.setattr("sys.argv", ["train.py", "--device", "cpu", "--save_dir", str(tmp_path / "run"), *given])
    return train.read_flags()[0]


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def digits():
    return load_mnist(DATA_DIR, "train")[0][:512]


@pytest.mark.parametrize("arch", ["mlp", "conv"])
@pytest.mark.parametrize(("recon_loss", "n_iw_samples"), [("bce", 1), ("mse", 1), ("bce", 3)])
def test_training_on_512_digits_lowers_the_loss(monkeypatch, tmp_path, digits, arch, recon_loss, n_iw_samples):
    size = ("--arch", arch, "--width", "32", "--n_blocks", "1", "--batch_size", "16", "--lr", "0.003", "--n_epochs", "8")
    what = ("--recon_loss", recon_loss, "--n_iw_samples", str(n_iw_samples), "--recon_weight", "2000")
    args = flags(monkeypatch, tmp_path, *size, *what)
    torch.manual_seed(0)
    model = VAE(VAEConfig(arch, 2, 32, 1), digits.float().mean(dim=0) / 255)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, fused=True)

    def loss_now():
        figures = train.held_out_figures(model, digits, args, "fp32")
        return args.recon_weight * figures["recon_loss"] + figures["kld_loss"]

    before = loss_now()
    for epoch in range(1, 9):
        train.train_one_epoch(model, model, optimizer, digits, args, epoch)
    assert loss_now() < 0.95 * before


@pytest.mark.parametrize(("prior", "binarize"), [("normal", "none"), ("normal", "dynamic"), ("flow", "dynamic")])
def test_held_out_figures_are_a_plain_loop_over_the_images(monkeypatch, tmp_path, digits, prior, binarize):
    args = flags(monkeypatch, tmp_path, "--latent_dim", "3", "--prior", prior)
    torch.manual_seed(0)
    model = VAE(VAEConfig("mlp", 3, 16, 2, prior))
    if prior == "flow":
        liven(model.prior)
    images = fixed_binarization(digits[:50], binarize)
    eps = train.posterior_noise(50, 3)
    nll, kl = 0.0, 0.0
    with torch.no_grad():
        for i in range(50):
            x = images[i : i + 1] / 255
            logits, mu, logvar = model(x, eps[i : i + 1])
            nll += bernoulli_nll(logits, x).item() / 50
            if prior == "normal":
                kl += kl_divergence(mu, logvar).item() / 50
            else:
                posterior = Normal(mu, torch.exp(0.5 * logvar))
                z = posterior.mean + posterior.stddev * eps[i : i + 1]
                kl += (posterior.log_prob(z).sum() - model.prior.log_prob(z)).item() / 50
    figures = train.held_out_figures(model, images, args, "fp32")
    assert figures["neg_elbo"] == pytest.approx(nll + kl, rel=1e-5)
    assert figures["kld_loss"] == pytest.approx(kl, rel=1e-5)
    assert 784 * figures["recon_loss"] + figures["kld_loss"] == pytest.approx(nll + kl, rel=1e-5)  # 784 is the exact ELBO


@pytest.mark.parametrize("n_iw_samples", ["1", "3"])
def test_the_training_figures_average_over_images_the_smaller_last_batch_too(monkeypatch, tmp_path, digits, n_iw_samples):
    """At a vanishing learning rate the running means are those of a fixed model: 300 images in batches of 128, 128, 44."""
    args = flags(monkeypatch, tmp_path, "--lr", "1e-12", "--recon_loss", "mse", "--n_iw_samples", n_iw_samples)
    model = VAE(VAEConfig("mlp", 2, 16, 1), digits.float().mean(dim=0) / 255)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-12, weight_decay=0.0, fused=True)
    trained = train.train_one_epoch(model, model, optimizer, digits[:300], args, 1)
    held_out = train.held_out_figures(model, digits[:300], args, "fp32")
    assert trained["kld_loss"] == pytest.approx(held_out["kld_loss"], rel=0.01)
    assert trained["recon_loss"] == pytest.approx(held_out["recon_loss"], rel=0.01)
    assert trained["neg_elbo"] == pytest.approx(held_out["neg_elbo"], rel=0.01)


@pytest.mark.parametrize("prior", ["normal", "flow"])
@pytest.mark.parametrize("n_draws", [1, 3])
def test_the_loss_is_the_weighted_bound_by_torch_distributions(digits, prior, n_draws):
    """-ELBO for one draw, -log of the mean importance weight for several, image by image and draw by draw."""
    torch.manual_seed(0)
    model, weight = VAE(VAEConfig("mlp", 3, 16, 1, prior)), 500.0
    if prior == "flow":
        liven(model.prior)
    x, eps = digits[:4] / 255, torch.randn(n_draws, 4, 3)
    logits, mu, logvar = model(x, eps)
    z = model.reparameterize(mu, logvar, eps)
    kl, loss = train.kl_and_loss(model, bernoulli_nll(logits, x), mu, logvar, z, weight)

    truth = 0.0
    for i in range(4):
        posterior = Independent(Normal(mu[i], torch.exp(0.5 * logvar[i])), 1)
        log_w = []
        for draw in range(n_draws):
            log_p_x = -F.binary_cross_entropy(torch.sigmoid(logits[draw, i]), x[i], reduction="sum")
            log_w.append(weight / 784 * log_p_x + model.prior.log_prob(z[draw, i]) - posterior.log_prob(z[draw, i]))
        bound = torch.stack(log_w).double().exp().mean().log().float() if n_draws > 1 else log_w[0]
        if n_draws == 1 and prior == "normal":  # the closed form in place of the draw
            standard = Independent(Normal(torch.zeros(3), torch.ones(3)), 1)
            bound = weight / 784 * log_p_x - torch.distributions.kl_divergence(posterior, standard)
        truth = truth - bound / 4
    torch.testing.assert_close(loss, truth)
    assert kl.shape == ((4,) if prior == "normal" else (n_draws, 4))


def test_a_new_run_starts_from_the_weights_it_is_given(trainer, tiny_run, tmp_path):
    figures = rows(tiny_run / "metrics.csv")[-1]
    start = ("--init_from", tiny_run / "last.pth", "--n_epochs", "1", "--lr", "1e-12")
    done = trainer(tmp_path, *TINY, *start, "--n_iw_samples", "3", "--save_dir", "run")
    assert done.returncode == 0, done.stderr
    (row,) = rows(tmp_path / "run" / "metrics.csv")
    for name in ("val_recon_loss", "val_kld_loss"):  # the same images and noise; nothing can be learned at this rate
        assert float(row[name]) == pytest.approx(float(figures[name]), rel=1e-4)
    refused = trainer(tmp_path, *TINY, *start, "--latent_dim", "3", "--save_dir", "other")
    assert refused.returncode == 2
    sentence = one_sentence(refused.stderr)
    assert "--latent_dim is 3" in sentence
    assert "has 2" in sentence
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(("n_iw_samples", "best"), [("1", 1), ("3", 2)])
def test_best_is_the_lowest_loss_but_the_latest_epoch_where_the_loss_is_another_bound(trainer, tmp_path, n_iw_samples, best):
    worse = """
import train
held_out_figures, calls = train.held_out_figures, []
def one_nat_more_each_time(*given):
    calls.append(None)
    return held_out_figures(*given) | {"kld_loss": float(len(calls))}
train.held_out_figures = one_nat_more_each_time
"""
    run = (*TINY, "--n_epochs", "2", "--lr", "1e-12", "--n_iw_samples", n_iw_samples, "--save_dir", "run")
    done = trainer(tmp_path, *run, before=worse)
    assert done.returncode == 0, done.stderr
    assert len(load_checkpoint(tmp_path / "run" / "best.pth")[1]["metrics"]) == best


def test_the_learning_rate_warms_up_and_falls_as_a_cosine():
    n, warmup = 10_000, train.WARMUP_STEPS
    rates = [train.learning_rate(step, n, 2.0) for step in range(n)]
    assert rates[0] == pytest.approx(2.0 / warmup)
    assert max(rates) == pytest.approx(2.0, rel=0.02)
    assert rates[n // 2] == pytest.approx(1.0)
    assert rates[n // 4] == pytest.approx(1 + math.cos(math.pi / 4))
    assert rates[-1] < 1e-6


@pytest.mark.parametrize("prior", ["normal", "flow"])
def test_a_run_stopped_after_2_of_4_epochs_and_resumed_is_the_uninterrupted_one(trainer, tmp_path, prior):
    run = (*TINY, "--binarize", "dynamic", "--n_epochs", "4", "--prior", prior, "--latent_dim", "4")
    whole = trainer(tmp_path, *run, "--save_dir", "whole")
    assert whole.returncode == 0, whole.stderr
    stopped = trainer(tmp_path, *run, "--save_dir", "parts", signal_number=signal.SIGINT, once="epoch 2/4")
    assert stopped.returncode == 130
    assert len(rows(tmp_path / "parts" / "metrics.csv")) < 4
    resumed = trainer(tmp_path, "--resume", "parts/last.pth")
    assert resumed.returncode == 0, resumed.stderr
    for name in ("best.pth", "last.pth"):
        ours, theirs = (load_checkpoint(tmp_path / folder / name)[1]["weights"] for folder in ("whole", "parts"))
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    learned = [name for name in ours if name.startswith("prior.")]
    assert bool(learned) == (prior == "flow")
    assert all(ours[name].any() for name in learned)  # the last layers start at zero
    ours, theirs = (rows(tmp_path / folder / "metrics.csv") for folder in ("whole", "parts"))
    assert [row | {"seconds": 0} for row in ours] == [row | {"seconds": 0} for row in theirs]


def test_the_seed_decides_the_run_and_the_split_does_not_depend_on_it(trainer, tmp_path):
    for folder, seed in (("one", 1), ("again", 1), ("two", 2)):
        done = trainer(tmp_path, *TINY, "--n_epochs", "1", "--seed", str(seed), "--save_dir", folder)
        assert done.returncode == 0, done.stderr
    figures = [rows(tmp_path / folder / "metrics.csv")[0]["val_neg_elbo"] for folder in ("one", "again", "two")]
    assert figures[0] == figures[1]
    assert figures[0] != figures[2]


def test_what_a_run_leaves(tiny_run):
    metrics = rows(tiny_run / "metrics.csv")
    assert list(metrics[0]) == COLUMNS
    assert [row["epoch"] for row in metrics] == ["1", "2"]
    assert sorted(path.name for path in (tiny_run / "samples").iterdir()) == ["epoch_0001.png", "epoch_0002.png"]
    model, best = load_checkpoint(tiny_run / "best.pth")
    assert "training" not in best
    assert model.config == VAEConfig("mlp", 2, 16, 1)
    assert not set(best["args"]) & set(train.NOT_OF_THE_RUN)


def test_every_draw_of_a_run_has_a_stream_of_its_own():
    seeds = [(seed, epoch, *rest) for seed in range(3) for epoch in range(3) for rest in ((), (0, 1), (0, 2), (1, 1))]
    states = {tuple(torch.rand(4, generator=cli.rng(*seed)).tolist()) for seed in seeds}
    assert len(states) == len(seeds)
