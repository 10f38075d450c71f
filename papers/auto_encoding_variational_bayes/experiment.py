"""Shared by the paper's experiments: networks, recipes, and training in chunks of samples.

Paper: Kingma and Welling, Auto-Encoding Variational Bayes (2014), https://arxiv.org/abs/1312.6114,
Section 5. The random numbers of a chunk depend only on the seed and the chunk's index, so a resumed
run has the same result as an uninterrupted one.
"""

from argparse import Namespace
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.optim import Adagrad, AdamW

from data import binarize
from model import VAE, VAEConfig
from papers.auto_encoding_variational_bayes import inference
from train import BETAS, learning_rate
from utils.device import rng

ALGORITHMS = ("AEVB", "wake-sleep", "MCEM")
LOSSES = {"AEVB": inference.aevb_loss, "wake-sleep": inference.wake_sleep_loss}
RECIPES = ("paper", "variance", "ours")
BINARIZE = ("none", "fixed", "dynamic")  # pixels: grey, drawn once, or drawn anew for each batch
N_TRAIN, BATCH_SIZE = 50_000, 100
CHUNK = 10_000  # samples that share a random stream
N_HIDDEN = {2: 500, 3: 100}  # the paper's figure -> hidden units of encoder and decoder
INIT_STDS = {"paper": 0.01, "variance": 0.1}  # 0.01 in N(0, 0.01), read as std or variance
# Figure -> algorithm -> Adagrad's step size, chosen among the paper's 0.01, 0.02 and 0.1 by the
# training bound after 50,000 samples (MCEM: by log p(x, z) after five iterations). In 20
# dimensions, --step_size 0.01 is better for --recipe variance and for --binarize fixed.
STEP_SIZES = {
    2: {"AEVB": 0.02, "wake-sleep": 0.01},
    3: {"AEVB": 0.1, "wake-sleep": 0.02, "MCEM": 0.1},
}
OUR_LR = 2e-3  # peak learning rate of AdamW, the best of 1e-3, 2e-3 and 4e-3 on validation images
N_MCEM_STEPS, N_UPDATES = 10, 5  # leapfrog steps, updates per iteration of Monte Carlo EM
N_TOGETHER = 1000  # images processed at once in Monte Carlo EM


@dataclass(frozen=True)
class Network:
    """A network to train, its algorithm and recipe, and its training images."""

    algorithm: str
    latent_dim: int
    figure: int = 2  # the paper's figure that shows this network's curve
    n_train: int = N_TRAIN  # the first N training images
    recipe: str = "paper"
    binarize: str = "none"

    @property
    def chunk(self) -> int:
        """Samples in a chunk. For Monte Carlo EM, a chunk is one iteration over all images.

        Each leapfrog step or update counts as one sample per image, as the paper's curves imply.
        """
        return self.n_train * (N_MCEM_STEPS + N_UPDATES) if self.algorithm == "MCEM" else CHUNK

    def __str__(self) -> str:
        name = f"figure_{self.figure}_{self.algorithm}_{self.latent_dim}d_{self.n_train}"
        return f"{name}_{self.recipe}_{self.binarize}"


class TwoLayerVAE(VAE):
    """Our VAE with the paper's networks (Appendix C), each with one hidden layer of tanh units."""

    def __init__(self, network: Network, mean_image: Tensor | None = None):
        width = N_HIDDEN[network.figure]
        super().__init__(VAEConfig("mlp", network.latent_dim, width, n_blocks=0), mean_image)
        self.encoder[2], self.decoder[1] = nn.Tanh(), nn.Tanh()  # in place of SiLU


class PaperVAE(TwoLayerVAE):
    """The paper's VAE: all parameters start from N(0, std^2), and logvar is unbounded."""

    def __init__(self, network: Network):
        super().__init__(network)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=INIT_STDS[network.recipe])

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """q(z|x): x (B, 1, 28, 28) -> mu, logvar (B, L)."""
        return self.encoder(x).chunk(2, dim=1)


class Run:
    """A training run on `images` (N, 1, 28, 28) uint8."""

    def __init__(self, network: Network, images: Tensor, args: Namespace):
        torch.manual_seed(args.seed)
        self.network, self.n_chunks, self.rows = network, 0, []  # rows: lines of the network's CSV
        self.settings = [args.seed, args.step_size]  # must be the same when a run is resumed
        if network.recipe == "ours":
            self.settings += [args.n_samples]  # determines the learning rate
            self.model = TwoLayerVAE(network, images.float().mean(dim=0) / 255)
            self.optimizer = AdamW(self.model.parameters(), betas=BETAS, fused=True)
        else:
            self.model = PaperVAE(network)
            lr = args.step_size or STEP_SIZES[network.figure][network.algorithm]
            decay = 1 / network.n_train  # -log N(theta; 0, I) / N has the gradient theta / N
            self.optimizer = Adagrad(self.model.parameters(), lr, weight_decay=decay, fused=True)
        n_chains = network.n_train if network.algorithm == "MCEM" else 0
        self.z = torch.randn(n_chains, network.latent_dim)  # one Markov chain per image
        self.hmc_step_size = torch.full((n_chains, 1), inference.FIRST_STEP_SIZE)


def chunk_order(n_train: int, chunk: int, seed: int) -> Tensor:
    """Indices (CHUNK,) of a chunk's images, from consecutive, separately shuffled epochs."""
    start = chunk * CHUNK
    epochs = range(start // n_train, -(-(start + CHUNK) // n_train))
    orders = [torch.randperm(n_train, generator=rng(seed, epoch)) for epoch in epochs]
    return torch.cat(orders)[start - epochs[0] * n_train :][:CHUNK]


def train_chunk(run: Run, images: Tensor, args: Namespace) -> None:
    """Trains on the next chunk of samples from `images` (N, 1, 28, 28) uint8."""
    network, chunk = run.network, run.n_chunks
    generator = rng(args.seed, chunk, 1)
    mode = "dynamic" if network.binarize == "dynamic" else "none"
    run.model.train()
    if network.algorithm == "MCEM":
        mcem_iteration(run, binarize(images, mode, generator), generator)
    else:
        order = chunk_order(network.n_train, chunk, args.seed)
        for step, index in enumerate(order.split(BATCH_SIZE), start=chunk * CHUNK // BATCH_SIZE):
            x = binarize(images[index], mode, generator) / 255  # (B, 1, 28, 28)
            loss = LOSSES[network.algorithm](run.model, x, generator)
            run.optimizer.zero_grad()
            loss.backward()
            if network.recipe == "ours":
                lr = learning_rate(step, args.n_samples // BATCH_SIZE, OUR_LR)
                run.optimizer.param_groups[0]["lr"] = lr
            run.optimizer.step()
    run.n_chunks += 1


def mcem_iteration(run: Run, images: Tensor, generator: Generator) -> None:
    """An iteration of Monte Carlo EM (Appendix E): a draw z ~ p(z|x) per image, then five updates.

    E step: 10 leapfrog steps continue each image's chain. M step: the weights follow the gradient
    of log p(x, z), averaged over all `images` (N, 1, 28, 28) uint8.
    """
    parts = torch.arange(len(images)).split(N_TOGETHER)
    for part in parts:
        posterior = inference.Posterior(run.model, images[part] / 255)
        z, step_size = run.z[part], run.hmc_step_size[part]
        chain = inference.Chain(z, posterior.log_prob(z), step_size)
        chain = inference.hmc_step(chain, posterior, N_MCEM_STEPS, generator, adapt=True)
        run.z[part], run.hmc_step_size[part] = chain.z, chain.step_size
    for _ in range(N_UPDATES):
        run.optimizer.zero_grad()
        for part in parts:
            loss = inference.joint_nll(run.model, images[part] / 255, run.z[part])
            (loss * len(part) / len(images)).backward()
        run.optimizer.step()
