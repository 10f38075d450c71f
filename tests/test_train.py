"""Training: it learns, it logs what it says, and it starts from what it is given."""

from dataclasses import replace

from utils.checkpoint import load_checkpoint
from utils.cli import DATA_DIR
from utils.flags import Settings

import pytest
import torch
from conftest import TINY, random_model, read_rows

from data import load_mnist
from estimators import exact_nll
from model import VAE, VAEConfig
from optimizer import AdamW
from train import encoder_pace, own_batches, train_one_epoch, training_loss, validate

COLUMNS = ["train_recon_loss", "train_kld_loss", "train_neg_elbo"]
COLUMNS += ["val_recon_loss", "val_kld_loss", "val_neg_elbo", "lr", "seconds"]


@pytest.fixture(scope="module")
def digits():
    return load_mnist(DATA_DIR, "train")[0][:512]


@pytest.mark.parametrize(
    ("arch", "recon_loss", "n_draws"),
    [("mlp", "bce", 1), ("mlp", "mse", 1), ("mlp", "bce", 3), ("conv", "bce", 1)],
)
def test_training_on_512_digits_lowers_the_loss(digits, arch, recon_loss, n_draws):
    what = {"recon_loss": recon_loss, "n_importance_samples": n_draws, "recon_weight": 2000.0}
    settings = Settings(n_epochs=8, batch_size=16, lr=0.003, **what)
    torch.manual_seed(0)
    model = VAE(VAEConfig(arch, width=16), digits.float().mean(dim=0) / 255)
    optimizer = AdamW(model.parameters())
    before = settings.objective(validate(model, digits, settings))
    for epoch in range(1, 9):
        train_one_epoch(model, optimizer, digits, settings, epoch)
    assert settings.objective(validate(model, digits, settings)) < 0.95 * before


@pytest.mark.parametrize("n_draws", [1, 3])
@pytest.mark.parametrize("recon_loss", ["bce", "mse"])
def test_training_figures_are_means_over_images_as_in_validation(digits, recon_loss, n_draws):
    """At a vanishing rate they are those of a fixed model: 300 images in 128, 128 and 44."""
    how = {"recon_loss": recon_loss, "n_importance_samples": n_draws}
    settings = Settings(batch_size=128, lr=1e-12, **how)
    model, images = random_model(), digits[:300]
    trained = train_one_epoch(model, AdamW(model.parameters()), images, settings, 1)
    validated = validate(model, images, settings)
    for name, tolerance in {"recon_loss": 0.005, "kld_loss": 0.02, "neg_elbo": 4}.items():
        assert trained[f"train_{name}"] == pytest.approx(validated[f"val_{name}"], abs=tolerance)
    if recon_loss == "bce":  # the mean over pixels is that of the nats
        nats = 784 * validated["val_recon_loss"] + validated["val_kld_loss"]
        assert nats == pytest.approx(validated["val_neg_elbo"])


def test_with_a_grid_half_of_the_loss_is_the_exact_nll(digits):
    model, (recon, kl) = random_model(), torch.rand(2, 1, 5)
    settings, rng = Settings(n_grid=64, recon_weight=784.0), torch.Generator().manual_seed(0)
    loss = training_loss(model, digits[:5] / 255, recon, kl, settings, 0, rng)
    exact, _, _ = exact_nll(model, digits[:5])
    truth = (recon.mean() + kl.mean() + exact.mean()) / 2
    assert loss.item() == pytest.approx(truth.item(), abs=0.03)


def test_the_kl_divergence_warms_up_over_the_first_steps_of_the_run(digits, monkeypatch):
    steps = []

    def counted(*given):
        steps.append(given[5])
        return training_loss(*given)

    monkeypatch.setattr("train.training_loss", counted)
    model, settings = random_model(), Settings(kl_warmup=3, batch_size=256, recon_weight=784.0)
    for epoch in (1, 2, 3):
        train_one_epoch(model, AdamW(model.parameters()), digits, settings, epoch)
    assert steps == [0, 1, 2, 3, 4, 5]
    recon, kl = torch.rand(2, 1, 5)
    for step, weight in zip(steps, (0.25, 0.5, 0.75, 1, 1, 1), strict=True):
        loss = training_loss(model, digits[:5], recon, kl, settings, step, torch.Generator())
        assert loss.item() == pytest.approx((recon + weight * kl).mean().item())


def test_the_encoder_slows_down_with_its_posteriors_deviation():
    logvar = torch.tensor([[0.1, 0.4], [0.2, 0.05]]).square().log()
    mean = (0.1 * 0.4 * 0.2 * 0.05) ** (1 / 4)
    assert encoder_pace(logvar, Settings(slow_encoder=0.2)) == pytest.approx(mean / 0.2)
    assert encoder_pace(logvar, Settings(slow_encoder=0.1)) == 1.0
    assert encoder_pace(logvar, Settings()) == 1.0


def test_only_the_encoder_slows_down(digits):
    """With a deviation that none has, its weights stay; they do not without."""
    for slow, moves in ((1e-12, True), (1e3, False)):
        model = random_model()
        before = {name: p.clone() for name, p in model.named_parameters()}
        optimizer = AdamW(model.parameters(), slow=model.encoder.parameters())
        train_one_epoch(model, optimizer, digits, Settings(lr=1e-3, slow_encoder=slow), 1)
        for name, p in model.named_parameters():
            step = (p - before[name]).abs().max().item()
            assert (step > 5e-4) == (moves or not name.startswith("encoder")), (name, step)


def test_deformations_fade_out_by_three_quarters_of_the_run(digits):
    settings = Settings(n_epochs=8, deform=0.2)
    changes = []
    for epoch in range(1, 9):
        deformed, plain = (
            torch.cat([*own_batches(digits, chosen, epoch)[0]])
            for chosen in (settings, replace(settings, deform=0.0))
        )
        changes.append((deformed - plain).abs().mean().item())
    assert changes[0] > 0.02
    assert sorted(changes, reverse=True) == changes
    assert changes[5] > 0 == changes[6] == changes[7]


def test_a_run_needs_no_test_images_and_prints_no_test_figure(trainer, tmp_path):
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for archive in (DATA_DIR / "MNIST" / "raw").glob("train-*.gz"):
        (raw / archive.name).symlink_to(archive)
    done = trainer(tmp_path, *TINY, "--n_epochs 1 --data_dir data --save_dir run")
    assert done.returncode == 0, done.stderr
    assert "test" not in done.stdout
    assert "best epoch 1: val recon_loss" in done.stdout
    assert "next: python3 evaluate.py --model_params run/best.pth" in done.stdout


def test_a_new_run_starts_from_the_weights_it_is_given(trainer, tiny_run, tmp_path):
    """At a rate at which nothing is learned the validation figures are those of that run."""
    flags = "--n_train 256 --n_epochs 1 --lr 1e-12 --n_importance_samples 3 --precision fp32"
    done = trainer(tmp_path, "--init_from", tiny_run / "last.pth", flags, "--save_dir run")
    assert done.returncode == 0, done.stderr
    (row,), before = (read_rows(folder / "metrics.csv") for folder in (tmp_path / "run", tiny_run))
    for name in ("val_recon_loss", "val_kld_loss"):
        assert float(row[name]) == pytest.approx(float(before[-1][name]), rel=1e-4)


@pytest.mark.parametrize(
    ("flags", "best"), [("", 1), ("--n_importance_samples 3", 2), ("--n_grid 4", 2)]
)
def test_best_is_the_lowest_loss_but_the_latest_where_training_lowers_another(
    trainer, tmp_path, flags, best
):
    flags = f"--n_epochs 2 --lr 1e-12 --save_dir run {flags}"
    done = trainer(tmp_path, *TINY, flags, before="validation_gets_worse()")
    assert done.returncode == 0, done.stderr
    assert len(load_checkpoint(tmp_path / "run" / "best.pth")[1]["metrics"]) == best
    assert f"best epoch {best}: " in done.stdout


def test_the_seed_decides_the_run(trainer, tiny_run, tmp_path):
    for folder, seed in (("again", 888), ("other", 2)):
        flags = f"--n_epochs 2 --seed {seed} --save_dir {folder}"
        assert trainer(tmp_path, *TINY, flags).returncode == 0
    first, again, other = (
        torch.cat([w.flatten() for w in load_checkpoint(folder / "last.pth")[0].parameters()])
        for folder in (tiny_run, tmp_path / "again", tmp_path / "other")
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_what_a_run_leaves(tiny_run):
    rows = read_rows(tiny_run / "metrics.csv")
    assert list(rows[0]) == ["epoch", *COLUMNS]
    assert [row["epoch"] for row in rows] == ["1", "2"]
    pictures = sorted(path.name for path in (tiny_run / "samples").iterdir())
    assert pictures == ["epoch_0001.png", "epoch_0002.png"]
    model, best = load_checkpoint(tiny_run / "best.pth")
    assert "training" not in best
    assert model.config == VAEConfig("mlp", 2, 16, 1)
    assert Settings(**best["args"]) == Settings(n_train=256, batch_size=128, n_epochs=2)
    assert [{name: str(value) for name, value in row.items()} for row in best["metrics"]] == rows
