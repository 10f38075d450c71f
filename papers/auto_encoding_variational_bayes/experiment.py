"""What the paper's experiments share: its network, its recipe, and a chunk of training.

Paper: Kingma and Welling, Auto-Encoding Variational Bayes (2014), https://arxiv.org/abs/1312.6114,
Section 5. A chunk of training is a function of the seed and its number: a run that goes on from a
checkpoint ends as if it never had stopped.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from utils.device import autocast, rng

import torch
from torch import Generator, Tensor, nn
from torch.optim.adagrad import adagrad

from data import SPLITS, batches, binarize, to_float
from loss import N_PIXELS
from model import VAE, VAEConfig
from optimizer import AdamW, learning_rate
from papers.auto_encoding_variational_bayes.inference import (
    FIRST_STEP_SIZE,
    Posterior,
    aevb_loss,
    hmc_step,
    joint_nll,
    start_chain,
    wake_sleep_loss,
)

ALGORITHMS = ("AEVB", "wake-sleep", "MCEM")
RECIPES = ("paper", "variance", "ours")
BINARIZE = ("none", "fixed", "dynamic")  # the pixels: grey, drawn once, or anew for each batch
N_TRAIN, BATCH_SIZE = SPLITS["train"][1].stop, 100
INIT_STDS = {"paper": 0.01, "variance": 0.1}  # N(0, 0.01) read as deviation and as variance
STEP_SIZES = (0.01, 0.02, 0.1)  # of Adagrad, from which the first samples choose
OUR_LR = 1e-3  # AdamW's peak
CHUNK = 10_000  # samples; random streams, checkpoints and rows of the CSV go by chunks
N_TRIAL_CHUNKS = 5  # for each of STEP_SIZES
N_LEAPFROG, N_UPDATES = 10, 5  # of Monte Carlo EM, in one iteration
N_TOGETHER = 1000  # images that Monte Carlo EM moves as one tensor


@dataclass(frozen=True)
class Network:
    """Which network is trained, by what and on what."""

    algorithm: str
    latent_dim: int
    n_hidden: int = 500  # units on either side
    n_train: int = N_TRAIN  # the first so many training images
    recipe: str = "paper"
    binarize: str = "none"

    @property
    def chunk(self) -> int:
        """Samples in a chunk: for Monte Carlo EM in an iteration, which takes all images.

        There each leapfrog step and each update counts as an evaluation of every image: so counted,
        its curves fall on the paper's, and else they are 15 times too early.
        """
        return self.n_train * (N_LEAPFROG + N_UPDATES) if self.algorithm == "MCEM" else CHUNK

    @property
    def columns(self) -> dict[str, str]:
        """What the CSV says of it."""
        return {k: str(v) for k, v in asdict(self).items() if k != "n_hidden"}

    def __str__(self) -> str:
        return "_".join(map(str, asdict(self).values()))


@dataclass(frozen=True)
class Experiment:
    """What a figure wants of each of its networks."""

    figure: int
    measure: Callable[[VAE, Tensor, bool], dict[str, float]]  # nats by name of the estimator
    n_samples: int
    seed: int
    precision: str
    step_size: float | None  # of Adagrad; None: that of STEP_SIZES with the best beginning
    data_dir: Path
    save_dir: Path

    @property
    def csv(self) -> Path:
        return self.save_dir / f"figure_{self.figure}.csv"

    def checkpoint(self, network: Network) -> Path:
        return self.save_dir / "networks" / f"{network}.pth"


class TwoLayerVAE(VAE):
    """Our VAE with the paper's networks (Appendix C): one layer of tanh units on either side."""

    def __init__(self, latent_dim: int, n_hidden: int, mean_image: Tensor | None = None):
        super().__init__(VAEConfig(latent_dim=latent_dim, width=1, n_blocks=1), mean_image)
        head = nn.Linear(n_hidden, 2 * latent_dim)
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(N_PIXELS, n_hidden), nn.Tanh(), head)
        last = nn.Linear(n_hidden, N_PIXELS, bias=False)  # its bias is the VAE's output_bias
        self.decoder = nn.Sequential(nn.Linear(latent_dim, n_hidden), nn.Tanh(), last)


class PaperVAE(TwoLayerVAE):
    """The same as the paper has it: all parameters from N(0, std^2), log sigma^2 unbounded."""

    def __init__(self, latent_dim: int, n_hidden: int, std: float = INIT_STDS["paper"]):
        super().__init__(latent_dim, n_hidden)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=std)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """q(z|x): x (B, 1, 28, 28) -> mu, logvar (B, L)."""
        mu, logvar = self.encoder(x).float().chunk(2, dim=1)
        return mu, logvar


class Adagrad:
    """theta -= lr * g / sqrt(G), where G sums g^2 since the start: Duchi et al. 2011.

    g is the gradient of the loss, a mean over images, and of -log p(theta) / n_train for the prior
    p(theta) = N(0, I): theta / n_train, the paper's weight decay.
    """

    def __init__(self, parameters: list[Tensor], n_train: int):
        self.parameters, self.n_train = parameters, n_train
        self.sums = [torch.zeros_like(p) for p in parameters]
        self.steps = [torch.zeros(()) for _ in parameters]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        adagrad(
            self.parameters,
            [p.grad for p in self.parameters],
            self.sums,
            self.steps,
            fused=True,
            lr=lr,
            weight_decay=1 / self.n_train,
            lr_decay=0.0,
            eps=1e-10,
            maximize=False,
        )

    def state_dict(self) -> dict[str, list[Tensor]]:
        return {"sums": self.sums, "steps": self.steps}

    load_state_dict = AdamW.load_state_dict


class Run:
    """A network in training, with all that its checkpoint holds."""

    def __init__(self, network: Network, images: Tensor, seed: int, lr: float | None):
        self.network, self.lr = network, lr
        size = (network.latent_dim, network.n_hidden)
        torch.manual_seed(seed)
        if network.recipe == "ours":
            self.model = TwoLayerVAE(*size, images.float().mean(dim=0) / 255)
            self.optimizer = AdamW(self.model.parameters())
        else:
            self.model = PaperVAE(*size, INIT_STDS[network.recipe])
            used = self.model.named_parameters()
            if network.algorithm == "MCEM":
                used = [(name, p) for name, p in used if not name.startswith("encoder")]
            self.optimizer = Adagrad([p for _, p in used], network.n_train)
        n_chains = network.n_train if network.algorithm == "MCEM" else 0
        self.z = torch.randn(n_chains, network.latent_dim)  # a Markov chain for each image
        self.step_size = torch.full((n_chains, 1), FIRST_STEP_SIZE)
        self.n_samples, self.seconds = 0, 0.0
        self.rows: list[dict] = []

    def state_dict(self) -> dict:
        tensors = {"weights": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        plain = {name: getattr(self, name) for name in ("lr", "n_samples", "seconds", "rows")}
        return tensors | plain | {"z": self.z, "step_size": self.step_size}

    def load_state_dict(self, state: dict) -> None:
        self.model.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name in ("lr", "n_samples", "seconds", "rows", "z", "step_size"):
            setattr(self, name, state[name])


def chunk_order(n_train: int, chunk: int, seed: int) -> Tensor:
    """The images of a chunk, (CHUNK,): a part of one epoch or several, each in its own order."""
    start = chunk * CHUNK
    epochs = range(start // n_train, -(-(start + CHUNK) // n_train))
    orders = [torch.randperm(n_train, generator=rng(seed, epoch)) for epoch in epochs]
    return torch.cat(orders)[start - epochs[0] * n_train :][:CHUNK]


def train_chunk(run: Run, images: Tensor, experiment: Experiment) -> None:
    """The next chunk of samples from `images` (N, 1, 28, 28) uint8."""
    start, network, model = time.perf_counter(), run.network, run.model
    chunk = run.n_samples // network.chunk
    generator = rng(experiment.seed, chunk, 1)
    if network.algorithm == "MCEM":
        mcem_iteration(run, images, experiment.precision, generator)
    else:
        loss_of = {"AEVB": aevb_loss, "wake-sleep": wake_sleep_loss}[network.algorithm]
        order = chunk_order(network.n_train, chunk, experiment.seed)
        mode = "dynamic" if network.binarize == "dynamic" else "none"
        for i, x in enumerate(batches(images, order, BATCH_SIZE, mode, generator)):
            with autocast(experiment.precision, model.device):
                loss = loss_of(model, x, generator)
            model.zero_grad()
            loss.backward()
            lr = run.lr
            if network.recipe == "ours":
                step = run.n_samples // BATCH_SIZE + i
                lr = learning_rate(step, experiment.n_samples // BATCH_SIZE, OUR_LR)
            run.optimizer.step(lr)
    run.n_samples += network.chunk
    run.seconds += time.perf_counter() - start


def mcem_iteration(run: Run, images: Tensor, precision: str, generator: Generator) -> None:
    """Monte Carlo EM (paper: Section 5): a draw z ~ p(z|x) for every image, then five updates.

    E: 10 leapfrog steps of every image's chain, which goes on from where it stood. M: the weights
    follow the gradient of the mean of log p(x, z) over all images.
    """
    mode = "dynamic" if run.network.binarize == "dynamic" else "none"
    x = binarize(images, mode, generator)
    parts = torch.arange(len(x)).split(N_TOGETHER)
    for part in parts:
        posterior = Posterior(run.model, to_float(x[part]))
        chain = start_chain(run.z[part], posterior, run.step_size[part])
        chain = hmc_step(chain, posterior, N_LEAPFROG, generator, adapt=True)
        run.z[part], run.step_size[part] = chain.z, chain.step_size
    for _ in range(N_UPDATES):
        run.model.zero_grad()
        for part in parts:
            with autocast(precision, run.model.device):
                loss = joint_nll(run.model, to_float(x[part]), run.z[part])
            (loss * len(part) / len(x)).backward()
        run.optimizer.step(run.lr)
