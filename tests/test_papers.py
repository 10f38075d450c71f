"""The paper's experiments: each piece against a closed form, a quadrature or brute force."""

import math
from functools import partial

from utils.device import rng

import numpy as np
import pytest
import torch
from conftest import ROOT, read_rows, refusal, run_script
from torch import Tensor, nn

from data import load_mnist
from estimators import exact_nll, importance_weighted_nll, posteriors
from papers.auto_encoding_variational_bayes import experiment, inference, runner
from papers.auto_encoding_variational_bayes.experiment import Experiment, Network, Run

FOLDER = "papers/auto_encoding_variational_bayes"


class LinearGaussian:
    """z ~ N(0, I), x ~ N(W z, s^2 I): the posterior and the evidence are known (Bishop 2.113-117).

    Every image x (B, D) has the same W (D, L) and s.
    """

    def __init__(self, n: int):
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(4, 2, generator=generator, dtype=torch.float64)
        self.s = 0.5
        self.x = torch.randn(n, 4, generator=generator, dtype=torch.float64)
        precision = torch.eye(2) + self.weight.T @ self.weight / self.s**2
        self.covariance = torch.linalg.inv(precision)  # (L, L)
        self.mean = self.x @ self.weight @ self.covariance / self.s**2  # (n, L)

    def log_prob(self, z: Tensor) -> Tensor:
        prior = torch.distributions.Normal(0, 1).log_prob(z).sum(dim=1)
        return prior + torch.distributions.Normal(z @ self.weight.T, self.s).log_prob(self.x).sum(1)

    def gradient(self, z: Tensor) -> Tensor:
        return (self.x - z @ self.weight.T) @ self.weight / self.s**2 - z

    def log_evidence(self) -> Tensor:
        covariance = self.weight @ self.weight.T + self.s**2 * torch.eye(4)
        zero = torch.zeros(4, dtype=torch.float64)
        return torch.distributions.MultivariateNormal(zero, covariance).log_prob(self.x)


def adapted_chain(posterior: LinearGaussian, generator: torch.Generator) -> inference.Chain:
    """Chains from the prior after 150 steps, in which their step sizes adapted."""
    z = torch.randn(posterior.mean.shape, generator=generator, dtype=torch.float64)
    chain = inference.start_chain(z, posterior)
    for _ in range(150):
        chain = inference.hmc_step(chain, posterior, 4, generator, adapt=True)
    return chain


def test_hmc_draws_from_the_posterior_and_accepts_nine_proposals_of_ten():
    posterior, generator = LinearGaussian(3000), torch.Generator().manual_seed(1)
    chain = adapted_chain(posterior, generator)
    after = inference.hmc_step(chain, posterior, 4, generator)
    assert torch.equal(after.step_size, chain.step_size)
    accepted = (after.z != chain.z).any(dim=1)
    assert accepted.double().mean().item() == pytest.approx(0.9, abs=0.03)
    assert torch.equal(after.z[~accepted], chain.z[~accepted])
    assert torch.allclose(after.log_prob, posterior.log_prob(after.z))
    error, n = after.z - posterior.mean, len(after.z)
    variances = posterior.covariance.diag()
    assert (error.mean(dim=0).abs() < 4 * (variances / n).sqrt()).all()
    spread = (torch.outer(variances, variances) + posterior.covariance.square()) / n
    assert ((error.T @ error / n - posterior.covariance).abs() < 4 * spread.sqrt()).all()


def test_leapfrog_leads_back_when_the_momentum_is_negated():
    posterior, generator = LinearGaussian(5), torch.Generator().manual_seed(1)
    z, momentum = torch.randn(2, 5, 2, generator=generator, dtype=torch.float64)
    step_size = torch.linspace(0.05, 0.3, 5, dtype=torch.float64)[:, None]
    there, end = inference.leapfrog(z, momentum, posterior, step_size, 7)
    assert (there - z).abs().min() > 1e-3
    back, start = inference.leapfrog(there, -end, posterior, step_size, 7)
    assert torch.allclose(back, z, atol=1e-12)
    assert torch.allclose(start, -momentum, atol=1e-12)


def test_the_estimate_of_appendix_d_is_the_exact_evidence_of_a_linear_gaussian_model():
    posterior, generator = LinearGaussian(500), torch.Generator().manual_seed(2)
    z = torch.randn(500, 2, generator=generator, dtype=torch.float64)
    chain = inference.start_chain(z, posterior)
    found = inference.evidence_by_appendix_d(chain, posterior, generator)
    error = found - posterior.log_evidence()
    assert error.mean().abs() < 0.02
    assert error.std() < 0.2


def lively_model(latent_dim: int) -> experiment.PaperVAE:
    """A decoder whose posteriors are narrow, skewed and unlike the prior."""
    torch.manual_seed(3)
    model = experiment.PaperVAE(latent_dim, 20)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def test_the_gradient_of_a_posterior_is_that_of_its_density():
    torch.manual_seed(0)
    x, z = torch.rand(4, 1, 28, 28), torch.randn(4, 2)
    posterior = inference.Posterior(lively_model(2), x)
    found = posterior.gradient(z)
    for d in range(2):
        step = 0.01 * torch.eye(2)[d]
        slope = (posterior.log_prob(z + step) - posterior.log_prob(z - step)) / 0.02
        assert torch.allclose(found[:, d], slope, atol=0.02)


def test_both_estimates_of_the_evidence_of_images_are_right():
    images = load_mnist(ROOT / "datasets", "train")[0][:20]
    plane, space = lively_model(2), lively_model(3)
    exact = -exact_nll(plane, images)[0]
    assert torch.allclose(inference.grid_evidence(plane, images), exact, atol=0.01)
    by_hmc = inference.estimate_evidence(plane, images, rng(0)).double()
    assert (by_hmc - exact).mean().abs() < 0.1
    sampled = -importance_weighted_nll(space, images, posteriors(space, images), 3000)
    assert (inference.grid_evidence(space, images) - sampled).mean().abs() < 0.1


class TwoPixels(nn.Module):
    """A model of two binary pixels with one latent dimension, so that sums over x are short."""

    class config:
        latent_dim = 1

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

    reparameterize = experiment.VAE.reparameterize


SETTINGS = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])[:, None, None]
NODES, WEIGHTS = (torch.tensor(a).float() for a in np.polynomial.hermite_e.hermegauss(40))
WEIGHTS = WEIGHTS / math.sqrt(
    2 * math.pi
)  # the mean over N(0, 1) of f is sum of WEIGHTS * f(NODES)


def log_p_of_settings(model: TwoPixels) -> Tensor:
    """log p(x|z) of the four x at every node: (40, 4)."""
    bernoulli = torch.distributions.Bernoulli(logits=model.decoder(NODES[:, None])[:, None])
    return bernoulli.log_prob(SETTINGS.flatten(1)).sum(dim=-1)


def exact_sleep_loss(model: TwoPixels) -> Tensor:
    """The mean of -log q(z|x) over p(z) p(x|z), by quadrature over z and a sum over x."""
    mu, logvar = model.encode(SETTINGS)
    log_q = torch.distributions.Normal(mu, (logvar / 2).exp()).log_prob(NODES)  # (4, 40)
    p = WEIGHTS[:, None] * log_p_of_settings(model).exp().detach()
    return -(p * log_q.T).sum()


def exact_wake_loss(model: TwoPixels) -> Tensor:
    """The mean of -log p(x, z) over q(z|x) and the four x, by quadrature over z."""
    mu, logvar = (part.detach() for part in model.encode(SETTINGS))
    z = mu + (logvar / 2).exp() * NODES  # (4, 40)
    bernoulli = torch.distributions.Bernoulli(logits=model.decoder(z[..., None]))
    log_p = bernoulli.log_prob(SETTINGS.flatten(1)[:, None]).sum(dim=-1)
    log_p = log_p + torch.distributions.Normal(0, 1).log_prob(z)
    return -(WEIGHTS * log_p).sum(dim=1).mean()


def gradients(loss: Tensor, model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("phase", ["wake", "sleep"])
def test_each_phase_has_the_gradient_of_the_exact_expectation(phase):
    model, generator = TwoPixels(), torch.Generator().manual_seed(5)
    x, n = SETTINGS.repeat(50_000, 1, 1, 1), 200_000
    sampled, exact = {
        "wake": (partial(inference.wake_loss, model, x, generator), exact_wake_loss),
        "sleep": (partial(inference.sleep_loss, model, n, generator), exact_sleep_loss),
    }[phase]
    wanted = gradients(exact(model), model)
    found = gradients(sampled(), model)
    trained = {"wake": "decoder", "sleep": "encoder"}[phase]
    assert set(found) == {f"{trained}.weight", f"{trained}.bias"}
    for name in found:
        assert wanted[name].abs().max() > 0.05
        assert torch.allclose(found[name], wanted[name], atol=0.02), name
    both = gradients(inference.wake_sleep_loss(model, x, generator), model)
    for name in found:
        assert torch.allclose(both[name], wanted[name], atol=0.02), name


def test_sleep_rests_where_the_encoder_is_the_exact_posterior():
    """Where x says nothing about z, the posterior is the prior, which the encoder can be."""
    model, generator = TwoPixels(), torch.Generator().manual_seed(6)
    nn.init.zeros_(model.decoder.weight)
    moving = gradients(inference.sleep_loss(model, 100_000, generator), model)
    assert max(g.abs().max() for g in moving.values()) > 0.1
    for parameter in model.encoder.parameters():
        nn.init.zeros_(parameter)
    resting = gradients(inference.sleep_loss(model, 100_000, generator), model)
    assert max(g.abs().max() for g in resting.values()) < 0.01


def test_monte_carlo_em_raises_the_exact_evidence():
    images, generator = load_mnist(ROOT / "datasets", "train")[0][:50], rng(0)
    run = Run(Network("MCEM", 2, n_hidden=10, n_train=50, binarize="none"), images, 0, lr=0.1)
    before = exact_nll(run.model, images, 64)[0].mean()
    evidence = [before]
    for _ in range(2):
        for _ in range(15):
            experiment.mcem_iteration(run, images, "fp32", generator)
        evidence.append(exact_nll(run.model, images, 64)[0].mean())
    assert evidence[0] > evidence[1] + 100
    assert evidence[1] > evidence[2] + 3


def test_three_steps_of_adagrad_by_hand():
    theta = torch.tensor([1.0, -2.0, 0.5], requires_grad=True)
    optimizer = experiment.Adagrad([theta], n_train=10)
    by_hand, total = np.array([1.0, -2.0, 0.5]), np.zeros(3)
    for slope in (np.array([0.3, -1.0, 0.0]), np.array([-2.0, 0.1, 4.0]), np.array([0.5] * 3)):
        theta.grad = torch.tensor(slope).float()
        optimizer.step(0.02)
        slope = slope + by_hand / 10  # of -log N(theta; 0, I) / 10
        total += slope**2
        by_hand -= 0.02 * slope / np.sqrt(total)
    assert np.allclose(theta.detach().numpy(), by_hand, rtol=1e-6)


def test_the_paper_s_network_starts_as_the_paper_says_and_bounds_no_variance():
    model = Run(Network("AEVB", 3), torch.zeros(1, 1, 28, 28), 0, 0.01).model
    for parameter in model.parameters():
        assert parameter.std().item() == pytest.approx(0.01, rel=0.4)
    assert [p.numel() for p in model.encoder.parameters()] == [784 * 500, 500, 500 * 6, 6]
    nn.init.constant_(model.encoder[-1].bias, 5.0)
    assert model.encode(torch.zeros(1, 1, 28, 28))[1].min() > 4


@pytest.mark.parametrize("n_train", [1000, 50_000])
def test_chunks_take_every_image_once_an_epoch(n_train):
    n_chunks = max(1, n_train // experiment.CHUNK)
    order = torch.cat([experiment.chunk_order(n_train, chunk, 0) for chunk in range(n_chunks)])
    epochs = order.view(-1, n_train)
    assert torch.equal(epochs.sort(dim=1).values, torch.arange(n_train).expand(len(epochs), -1))
    assert not torch.equal(order, order.sort().values)


@pytest.mark.parametrize(
    "network",
    [
        Network("AEVB", 2, 8, recipe="ours"),
        Network("wake-sleep", 2, 8, binarize="dynamic"),
        Network("MCEM", 2, 8, n_train=1000),
    ],
)
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(network, tmp_path):
    splits = runner.Splits(network, ROOT / "datasets")
    wanted = Experiment(2, runner.bound, 20_000, 0, "fp32", None, ROOT / "datasets", tmp_path)
    straight, stopped = (Run(network, splits.images, 0, 0.01) for _ in range(2))
    experiment.train_chunk(straight, splits.images, wanted)
    experiment.train_chunk(straight, splits.images, wanted)
    experiment.train_chunk(stopped, splits.images, wanted)
    wanted.checkpoint(network).parent.mkdir()
    runner.save(stopped, wanted)
    resumed = runner.resume(network, splits, wanted)
    experiment.train_chunk(resumed, splits.images, wanted)
    assert resumed.n_samples == straight.n_samples == 2 * network.chunk
    for ours, theirs in zip(resumed.model.parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(resumed.z, straight.z)


QUICK = {2: "--latent_dims 3", 3: "--n_train 1000 --n_images 20", 4: "", 5: ""}


@pytest.mark.parametrize("figure", QUICK)
def test_every_figure_has_a_quick_form_and_is_drawn_again_from_its_csv(figure, tmp_path):
    flags = f"--n_samples 10000 --step_size 0.02 --n_processes 1 --save_dir . {QUICK[figure]}"
    script, picture = f"{FOLDER}/figure_{figure}.py", tmp_path / f"figure_{figure}.png"
    done = run_script(script, flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = read_rows(tmp_path / f"figure_{figure}.csv")
    paper = read_rows(ROOT / FOLDER / "paper_curves.csv")
    assert set(rows[0]) == set(paper[0]) | {"recipe", "binarize", "estimator"}
    assert {row["n_samples"] for row in rows} <= {"10000", "15000"}
    fair_coins = 784 * math.log(0.5)  # what an untrained model gives
    assert all(fair_coins < float(row["nats"]) < -150 for row in rows)
    first = picture.read_bytes()
    if figure == 3:
        picture.unlink()
        assert run_script(script, flags, cwd=tmp_path).returncode == 0
        assert picture.read_bytes() == first
        done = run_script(script, flags, "--n_samples 20000 --seed 2", cwd=tmp_path)
        assert "another --seed" in refusal(done)
