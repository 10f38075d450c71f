"""The measuring stick against an exact integral, brute force and itself."""

import json
import math
import shutil

import pytest
import torch
from conftest import TINY, liven, one_sentence, run_script
from torch.distributions import Normal, kl_divergence

import data
from checkpoint import load_checkpoint, save_checkpoint
from evaluate import (
    elbo_terms,
    exact_nll,
    importance_weighted_nll,
    kl_of_dimensions,
    knn_accuracy,
    posterior_noise,
)
from loss import bernoulli_nll
from model import VAE, VAEConfig

CPU = torch.device("cpu")
PRETRAINED = data.DATA_DIR.parent / "pretrained" / "vae_mnist.pth"


@pytest.fixture(scope="module")
def images():
    return data.fixed_binarization(data.load_mnist(data.DATA_DIR, "test")[0], "dynamic")


@pytest.fixture(scope="module")
def model():
    return load_checkpoint(PRETRAINED)[0]


@pytest.mark.parametrize("batch_size", [7, 64])
@pytest.mark.parametrize(
    "config",
    [VAEConfig("mlp", 3, 16, 2), VAEConfig("conv", 3, 8, 1), VAEConfig("mlp", 3, 16, 2, "flow")],
    ids=["mlp", "conv", "flow"],
)
def test_results_do_not_depend_on_the_batch_size(images, config, batch_size):
    torch.manual_seed(0)
    model, x = VAE(config).eval(), images[:100]
    if config.prior == "flow":
        liven(model.prior)
    eps = posterior_noise(100, 3)
    for name, truth in elbo_terms(model, x, eps, CPU, "fp32", 100).items():
        torch.testing.assert_close(elbo_terms(model, x, eps, CPU, "fp32", batch_size)[name], truth, rtol=1e-5, atol=1e-5)
    truth = importance_weighted_nll(model, x[:20], 50, CPU, "fp32", 1000)
    torch.testing.assert_close(importance_weighted_nll(model, x[:20], 50, CPU, "fp32", batch_size), truth, rtol=1e-6, atol=1e-4)


def test_the_bounds_are_in_order_and_the_nll_meets_the_exact_integral(tiny_run, images):
    """-ELBO >= L_50 >= L_5000 >= exact, and L_5000 within 0.1 nats of it, for a model with simple posteriors."""
    model, x = load_checkpoint(tiny_run / "best.pth")[0], images[:100]
    terms = elbo_terms(model, x, posterior_noise(100, 2), CPU, "fp32", 100)
    neg_elbo = terms["recon"] + terms["kl"]
    few, many = (importance_weighted_nll(model, x, k, CPU, "fp32", 5000) for k in (50, 5000))
    exact, _, change = exact_nll(model, x, CPU)
    assert change < 0.01
    assert neg_elbo.mean() > few.mean() > many.mean()
    assert exact.mean() - 0.01 < many.mean() < exact.mean() + 0.1


def test_an_encoder_that_misses_modes_is_found_out(tiny_run, images):
    """The estimate may lie far above the integral, never below it, when q(z|x) sits in the wrong place."""
    model, x = load_checkpoint(tiny_run / "best.pth")[0], images[:50]
    exact, _, _ = exact_nll(model, x, CPU)
    with torch.no_grad():
        model.encoder[-1].bias += torch.tensor([3.0, 0.0, -8.0, -8.0])  # shifted, and too sure of it
    misled = importance_weighted_nll(model, x, 500, CPU, "fp32", 5000)
    assert misled.mean() > exact.mean() + 1
    assert (misled > exact - 0.1).all()


def test_one_importance_sample_is_the_elbo_on_average(model, images):
    x = images[:1].expand(2000, 1, 28, 28)  # one image with 2,000 draws of each kind
    terms = elbo_terms(model, x, posterior_noise(2000, 2), CPU, "fp32", 500)
    neg_elbo = terms["recon"] + terms["kl"]
    single = importance_weighted_nll(model, x, 1, CPU, "fp32", 500)
    error = math.hypot(neg_elbo.std(), single.std()) / math.sqrt(2000)
    assert abs(neg_elbo.mean() - single.mean()) < 4 * error


def test_the_exact_nll_is_the_mean_over_draws_from_the_prior(images):
    """An untrained decoder varies so little with z that plain Monte Carlo over the prior converges."""
    torch.manual_seed(0)
    model = VAE(VAEConfig("mlp", 2, 16, 1)).eval()
    x = images[:3]
    z = torch.randn(100_000, 2, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        logits = model.decode(z)
        truth = [
            -torch.logsumexp(-bernoulli_nll(logits, (image / 255).expand_as(logits)), 0) + math.log(100_000) for image in x
        ]
    exact, n_grid, _ = exact_nll(model, x, CPU, 4)
    torch.testing.assert_close(exact.float(), torch.stack(truth), atol=0.02, rtol=0)
    assert n_grid >= 16  # the sums of more than one halving went into it


def test_the_exact_nll_of_a_decoder_that_ignores_z_is_its_nll(images):
    model = VAE(VAEConfig("mlp", 2, 16, 1)).eval()
    torch.nn.init.zeros_(model.decoder[-1].weight)
    x = images[:20]
    truth = bernoulli_nll(model.decode(torch.zeros(20, 2)), x / 255).detach().double()
    exact, n_grid, change = exact_nll(model, x, CPU, 32)
    torch.testing.assert_close(exact, truth, rtol=1e-6, atol=1e-3)
    assert change < 1e-3
    assert n_grid == 64  # one halving shows that the first grid was fine enough


def test_the_exact_nll_of_a_flow_is_a_plain_sum_over_z_and_the_estimate_meets_it(images):
    """The script's integral is over u; this one is over z, and needs the flow's density."""
    torch.manual_seed(0)
    model, x = VAE(VAEConfig("mlp", 2, 16, 1, "flow")).eval(), images[:3]
    liven(model.prior)
    torch.nn.init.normal_(model.decoder[-1].weight, std=0.3)  # so that z matters, and with it where the prior has its mass
    axis = torch.linspace(-8, 8, 161)
    z = torch.cartesian_prod(axis, axis)
    with torch.inference_mode():
        log_joint = model.prior.log_prob(z).double()[:, None].repeat(1, 3)  # (G * G, 3)
        for part in torch.arange(len(z)).split(5_000):
            logits = model.decode(z[part])
            for i, image in enumerate(x):
                log_joint[part, i] -= bernoulli_nll(logits, (image / 255).expand_as(logits))
    truth = -(torch.logsumexp(log_joint, dim=0) + 2 * math.log(0.1))
    torch.testing.assert_close(exact_nll(model, x, CPU, 64)[0], truth, atol=1e-3, rtol=0)
    normal = VAE(VAEConfig("mlp", 2, 16, 1)).eval()
    normal.load_state_dict({name: weight for name, weight in model.state_dict().items() if not name.startswith("prior.")})
    assert (exact_nll(normal, x, CPU, 64)[0] - truth).abs().min() > 0.01
    estimate = importance_weighted_nll(model, x, 2000, CPU, "fp32", 2000)
    torch.testing.assert_close(estimate, truth, atol=0.1, rtol=0)  # the posteriors of so plain a model are simple


@pytest.mark.parametrize("prior", ["normal", "flow"])
def test_what_a_dimension_says_is_its_kl_from_the_prior_or_from_the_aggregate_posterior(prior):
    rng = torch.Generator().manual_seed(0)
    mu, logvar = 2 + torch.randn(2000, 3, generator=rng) * torch.tensor([0.0, 1.0, 5.0]), torch.randn(2000, 3, generator=rng)
    posterior = Normal(mu, torch.exp(0.5 * logvar))
    centre, std = torch.zeros(3), torch.ones(3)
    if prior == "flow":
        centre, std = mu.mean(dim=0), (mu.var(dim=0, correction=0) + posterior.variance.mean(dim=0)).sqrt()
    truth = kl_divergence(posterior, Normal(centre, std)).mean(dim=0)
    torch.testing.assert_close(kl_of_dimensions(mu, logvar, prior), truth, atol=1e-3, rtol=1e-4)
    assert torch.isfinite(kl_of_dimensions(mu[:1], logvar[:1], prior)).all()  # --n_images 1


def test_knn_is_a_brute_force_vote():
    rng = torch.Generator().manual_seed(0)
    mu, labels = torch.randn(40, 2, generator=rng), torch.randint(0, 3, (40,), generator=rng)
    known, known_labels = torch.randn(1000, 2, generator=rng), torch.randint(0, 3, (1000,), generator=rng)
    n_right = 0
    for point, label in zip(mu.tolist(), labels.tolist(), strict=True):
        distances = sorted((math.dist(point, other), int(known_labels[j])) for j, other in enumerate(known.tolist()))
        votes = [digit for _, digit in distances[:5]]
        n_right += max(range(10), key=lambda digit: (votes.count(digit), -digit)) == label
    accuracies = knn_accuracy(mu, labels, known, known_labels, n_draws=3)  # all 1,000 are drawn, in three orders
    torch.testing.assert_close(accuracies, torch.full((3,), n_right / 40, dtype=torch.float64))


def test_json_is_one_object_with_every_figure(tmp_path):
    flags = ("--json", "--n_images", "200", "--n_importance_samples", "20", "--binarize", "dynamic")
    done = run_script("evaluate.py", "--model_params", PRETRAINED, *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    keys = "n_images prior recon kl neg_elbo neg_elbo_stderr nll nll_stderr n_importance_samples active_units latent_dim"
    assert set(keys.split()) | {"knn_accuracy"} <= set(result)
    assert (result["n_images"], result["binarize"], result["latent_dim"]) == (200, "dynamic", 2)
    assert result["neg_elbo"] == pytest.approx(result["recon"] + result["kl"])
    assert result["nll"] < result["neg_elbo"]
    assert result["active_units"] == 2
    assert 0.5 < result["knn_accuracy"] < 1


def test_a_trained_flow_is_evaluated(trainer, tmp_path):
    run = (*TINY, "--n_epochs", "1", "--prior", "flow", "--latent_dim", "4", "--binarize", "dynamic", "--save_dir", "run")
    trained = trainer(tmp_path, *run)
    assert trained.returncode == 0, trained.stderr
    flags = ("--json", "--n_images", "200", "--n_importance_samples", "20")
    done = run_script("evaluate.py", "--model_params", "run/best.pth", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["prior"], result["binarize"], result["latent_dim"]) == ("flow", "dynamic", 4)
    assert result["neg_elbo"] == pytest.approx(result["recon"] + result["kl"])
    assert result["nll"] < result["neg_elbo"]
    assert len(result["kl_of_dimension"]) == 4


def test_bad_input_is_one_sentence(tmp_path, images):
    torch.manual_seed(0)
    args = {"dataset": "MNIST", "binarize": "none"}
    save_checkpoint(tmp_path / "3d.pth", VAE(VAEConfig("mlp", 3, 16, 1)), args, [])
    exact = run_script("evaluate.py", "--model_params", "3d.pth", "--exact", cwd=tmp_path)
    assert exact.returncode == 2
    assert "--exact" in one_sentence(exact.stderr)
    none = run_script("evaluate.py", "--model_params", "3d.pth", "--n_importance_samples", "0", cwd=tmp_path)
    assert none.returncode == 2
    assert "--n_importance_samples" in none.stderr
    huge = VAE(VAEConfig("mlp", 3, 16, 1))
    torch.nn.init.constant_(huge.encoder[-1].bias, 1e38)  # finite weights, infinite KL
    save_checkpoint(tmp_path / "huge.pth", huge, args, [])
    broken = run_script("evaluate.py", "--model_params", "huge.pth", "--n_images", "10", cwd=tmp_path)
    assert broken.returncode == 2
    assert "not finite" in one_sentence(broken.stderr)
    assert "nan" not in broken.stdout
    shutil.copytree(data.DATA_DIR / "MNIST", tmp_path / "FashionMNIST")
    (tmp_path / "FashionMNIST" / "raw" / "t10k-images-idx3-ubyte.gz").unlink()
    save_checkpoint(tmp_path / "fashion.pth", VAE(VAEConfig("mlp", 3, 16, 1)), args | {"dataset": "FashionMNIST"}, [])
    other = run_script("evaluate.py", "--model_params", "fashion.pth", "--data_dir", tmp_path, cwd=tmp_path)
    assert other.returncode == 2
    assert "FashionMNIST" in one_sentence(other.stderr)
