"""The paper's experiments: each piece against a closed form, a quadrature or brute force."""

import importlib
import math
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import read_rows, refusal, run_script
from torch import Generator, Tensor, nn
from torch.distributions import Bernoulli, MultivariateNormal, Normal

from data import SPLITS, load_mnist
from estimators import exact_nll, importance_weighted_nll, posteriors
from model import VAE
from papers.auto_encoding_variational_bayes import experiment, figure_3, inference, runner
from papers.auto_encoding_variational_bayes.experiment import Network, Run
from utils.cli import DATA_DIR

ARGS = Namespace(seed=0, step_size=None, n_samples=20_000)


class GaussianPosterior:
    """log p(x, z) = log p(x) + log N(z; mean, covariance) of n images, with all parts known."""

    def __init__(self, n: int):
        torch.manual_seed(0)
        self.mean, self.log_evidence = torch.randn(n, 2), torch.randn(n)
        self.precision = torch.tensor([[15.0, 4.0], [4.0, 12.0]])
        self.gaussian = MultivariateNormal(self.mean, precision_matrix=self.precision)

    def log_prob(self, z: Tensor) -> Tensor:
        return self.log_evidence + self.gaussian.log_prob(z)

    def gradient(self, z: Tensor) -> Tensor:
        return (self.mean - z) @ self.precision


def test_hmc_draws_from_the_posterior_and_appendix_d_finds_its_evidence():
    posterior, z, generator = GaussianPosterior(3000), torch.randn(3000, 2), Generator()
    chain = inference.Chain(z, posterior.log_prob(z), torch.full((3000, 1), 0.1))
    found = inference.evidence_by_appendix_d(chain, posterior, generator)
    assert (found - posterior.log_evidence).mean().abs() < 0.02
    assert (found - posterior.log_evidence).std() < 0.2
    for _ in range(200):
        chain = inference.hmc_step(chain, posterior, 4, generator, adapt=True)
    after = inference.hmc_step(chain, posterior, 4, generator)
    assert ((after.z != chain.z).any(dim=1).float().mean() - 0.9).abs() < 0.05
    assert torch.allclose(after.log_prob, posterior.log_prob(after.z), atol=1e-4)
    error, covariance = after.z - posterior.mean, torch.linalg.inv(posterior.precision)
    assert error.mean(dim=0).abs().max() < 0.025  # four standard errors
    assert torch.allclose(error.T @ error / 3000, covariance, atol=0.01)  # four standard errors


@pytest.fixture
def model() -> VAE:
    """A decoder whose posteriors are narrow, skewed and unlike the prior."""
    model = Run(Network("AEVB", 3, figure=3), torch.zeros(1), ARGS).model
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


def test_the_gradient_of_a_posterior_is_that_of_its_density(model):
    x, z, step = torch.rand(4, 1, 28, 28), torch.randn(4, 3), 0.01 * torch.randn(4, 3)
    posterior = inference.Posterior(model, x)
    rise = (posterior.log_prob(z + step) - posterior.log_prob(z - step)) / 2
    assert torch.allclose((posterior.gradient(z) * step).sum(dim=1), rise, atol=1e-3)


def test_both_estimates_of_the_evidence_agree_with_importance_sampling(model):
    images = load_mnist(DATA_DIR, "train")[0][:10]
    found = figure_3.evidence(model, images, is_last=True)
    sampled = importance_weighted_nll(model, images, posteriors(model, images), 3000)
    assert found["grid"] == pytest.approx(-sampled.mean().item(), abs=0.1)
    assert found["appendix D"] == pytest.approx(found["grid"], abs=0.1)


class TwoPixels(nn.Module):  # and one latent dimension, so that sums over x are short
    config = Namespace(latent_dim=1)
    reparameterize = VAE.reparameterize

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.encoder, self.decoder = nn.Linear(2, 2), nn.Linear(1, 2)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.7)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.encoder(x.flatten(1)).chunk(2, dim=1)

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z).view(-1, 1, 1, 2)


IMAGES = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])[:, None, None]  # all four
NODES, WEIGHTS = (torch.tensor(a).float() for a in np.polynomial.hermite_e.hermegauss(40))
WEIGHTS /= math.sqrt(2 * math.pi)  # the mean of f(z) over N(0, 1) is (WEIGHTS * f(NODES)).sum()


def log_likelihood(model: TwoPixels, z: Tensor) -> Tensor:
    """log p(x|z) of IMAGES, each with its row of z: (4, 40) -> (4, 40)."""
    logits = model.decoder(z[..., None])  # (4, 40, 2)
    return Bernoulli(logits=logits).log_prob(IMAGES.flatten(1)[:, None]).sum(dim=-1)


def exact_sleep_loss(model: TwoPixels) -> Tensor:
    """The mean of -log q(z|x) over p(z) p(x|z), by quadrature over z and a sum over x."""
    mu, logvar = model.encode(IMAGES)
    p = WEIGHTS * log_likelihood(model, NODES.expand(4, -1)).exp()
    return -(p * Normal(mu, (logvar / 2).exp()).log_prob(NODES)).sum()


def exact_wake_loss(model: TwoPixels) -> Tensor:
    """The mean of -log p(x, z) over q(z|x) and the four x, by quadrature over z."""
    mu, logvar = model.encode(IMAGES)
    z = mu + (logvar / 2).exp() * NODES  # (4, 40)
    log_joint = log_likelihood(model, z) + Normal(0, 1).log_prob(z)
    return -(WEIGHTS * log_joint).sum(dim=1).mean()


def test_wake_sleep_has_the_gradients_of_both_exact_expectations():
    model, generator = TwoPixels(), Generator().manual_seed(5)
    loss = inference.wake_sleep_loss(model, IMAGES.repeat(50_000, 1, 1, 1), generator)
    for part, exact in ((model.decoder, exact_wake_loss), (model.encoder, exact_sleep_loss)):
        found = torch.autograd.grad(loss, part.parameters(), retain_graph=True)
        wanted = torch.autograd.grad(exact(model), part.parameters())
        for ours, theirs in zip(found, wanted, strict=True):
            assert theirs.abs().max() > 0.05
            assert torch.allclose(ours, theirs, atol=0.02)


def test_monte_carlo_em_raises_the_exact_evidence():
    images, generator = load_mnist(DATA_DIR, "train")[0][:50], Generator().manual_seed(0)
    run = Run(Network("MCEM", 2, figure=3, n_train=50), images, ARGS)
    before = exact_nll(run.model, images, 65)[0].mean()
    for _ in range(30):
        experiment.mcem_iteration(run, images, generator)
    assert exact_nll(run.model, images, 65)[0].mean() < before - 103


def test_a_network_starts_as_the_paper_says():
    run = Run(Network("AEVB", 3), torch.zeros(1), ARGS)
    for parameter in run.model.parameters():
        assert parameter.std().item() == pytest.approx(0.01, rel=0.4)
    assert [p.numel() for p in run.model.encoder.parameters()] == [784 * 500, 500, 500 * 6, 6]
    assert run.optimizer.defaults["weight_decay"] == 1 / 50_000
    nn.init.constant_(run.model.encoder[-1].bias, 5.0)
    assert run.model.encode(torch.zeros(1, 1, 28, 28))[1].min() > 4


@pytest.mark.parametrize("n_train", [1000, 50_000])
def test_chunks_take_every_image_once_per_epoch(n_train):
    epochs = torch.cat([experiment.chunk_order(n_train, c, 0) for c in range(5)]).view(-1, n_train)
    assert torch.equal(epochs.sort(dim=1).values, torch.arange(n_train).expand(len(epochs), -1))


NETWORKS = [Network("AEVB", 2, 3, recipe="ours"), Network("wake-sleep", 2, 3, binarize="dynamic")]


@pytest.mark.parametrize("network", [*NETWORKS, Network("MCEM", 2, 3, n_train=1000)])
def test_a_resumed_network_ends_as_if_it_had_not_stopped(network, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "CHUNK", 1000)
    images = load_mnist(DATA_DIR, "train")[0][: network.n_train]
    straight, stopped, resumed = (Run(network, images, ARGS) for _ in range(3))
    for run in (straight, straight, stopped):
        experiment.train_chunk(run, images, ARGS)
    runner.save(stopped, tmp_path / "a.pth")
    runner.resume(resumed, tmp_path / "a.pth")
    experiment.train_chunk(resumed, images, ARGS)
    assert all(map(torch.equal, resumed.model.parameters(), straight.model.parameters()))
    assert torch.equal(resumed.z, straight.z)


MCEM = "--n_train 1000 --algorithm MCEM"
QUICK = ((2, "--latent_dim 3"), (3, MCEM), (4, ""), (5, ""))


@pytest.mark.parametrize(("figure", "flags"), QUICK)
def test_every_figure_has_a_quick_form_and_is_redrawn(figure, flags, tmp_path, monkeypatch):
    """Figure 3 also from its CSV alone; another seed does not resume its networks."""
    script = f"papers/auto_encoding_variational_bayes/figure_{figure}.py"
    flags = f"--n_samples 10000 --save_dir . {flags}"
    draw = importlib.import_module(script[:-3].replace("/", ".")).main
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [script, *flags.split()])
    monkeypatch.setattr(runner, "N_ESTIMATED", 1000)  # for speed
    monkeypatch.setattr(figure_3, "N_IMAGES", 20)
    monkeypatch.setitem(SPLITS, "test", ("t10k", 10_000, slice(0, 1000)))
    monkeypatch.setattr(torch, "set_flush_denormal", lambda _: None)  # it would outlast this test
    draw()
    rows = [r for path in Path("networks").glob("*.csv") for r in read_rows(path)]
    assert {row["n_samples"] for row in rows} <= {"10000", "15000"}
    assert all(784 * math.log(0.5) < float(row["nats"]) < -150 for row in rows)
    picture = Path(f"figure_{figure}.png").read_bytes()
    if figure == 3:
        assert "another --seed" in refusal(run_script(script, flags, "--seed 2", cwd=tmp_path))
        Path("networks").rename("elsewhere")
        draw()
        assert Path("figure_3.png").read_bytes() == picture
