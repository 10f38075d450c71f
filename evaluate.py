"""A checkpoint's figures on held-out images: -ELBO, log p(x), active units, k-NN. Owns no training.

python3 evaluate.py --model_params pretrained/vae_mnist.pth
python3 evaluate.py --model_params pretrained/vae_mnist.pth --exact --json
"""

import json
import math
from argparse import Namespace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import cli
from checkpoint import load_checkpoint
from data import BINARIZE, fixed_binarization, load_mnist, to_float
from errors import UserError
from loss import bernoulli_nll, gaussian_log_prob, kl_per_dimension, log_mean_exp, squared_error, standard_normal_log_prob
from model import VAE

NOISE_SEED = 0  # of the posterior draws, the same for every model and run
ACTIVE_VARIANCE = 0.01  # Burda et al. 2016, Section 5.2
COLLAPSED_KL = 0.01  # nats: a dimension below it says next to nothing about x
GRID_LIMIT = 6.5  # the quadrature covers u in [-6.5, 6.5]^2; the prior mass outside is below 2e-10
GRID_TOLERANCE = 0.01  # nats: the grid is fine enough when halving its step moves the mean by less
COARSEST, FINEST = 256, 2048  # grid points along each axis
N_LABELLED, N_NEIGHBOURS = 1000, 5
SMALL_GAP = 0.1  # nats that an importance-sampled NLL at K = 5000 may lie above the exact one


@torch.inference_mode()
def elbo_terms(model: VAE, images: Tensor, eps: Tensor, device: torch.device, precision: str, batch_size: int) -> dict:
    """The ELBO's terms for images (N, 1, 28, 28) uint8, with z = mu + std * eps for the given eps (N, L).

    Returns float64 tensors on the CPU: `recon` (N,) = -log p(x|z) and `kl` (N,) in nats, whose sum is -ELBO;
    `squared_error` (N,); `mu` and `logvar` (N, L). Only their rounding depends on `batch_size`.
    """
    model.eval()
    parts = []
    for chunk, noise in zip(images.split(batch_size), eps.to(device).split(batch_size), strict=True):
        x = to_float(chunk, device)  # (B, 1, 28, 28)
        with cli.autocast(precision, device):
            logits, mu, logvar = model(x, noise)
        kl = model.prior.kl(mu, logvar, model.reparameterize(mu, logvar, noise))
        parts.append((bernoulli_nll(logits, x), kl, squared_error(logits, x), mu, logvar))
    names = ("recon", "kl", "squared_error", "mu", "logvar")
    return {name: torch.cat(part).cpu().double() for name, part in zip(names, zip(*parts, strict=True), strict=True)}


def kl_of_dimensions(mu: Tensor, logvar: Tensor, prior: str) -> Tensor:
    """How much each dimension says about the image, nats: (N, L) twice -> (L,) means of the KL from N(0, 1).

    A flow has no such term for one dimension; there the Gaussian is that of the aggregate posterior's mean and variance.
    """
    if prior == "flow":
        centre, variance = mu.mean(dim=0), mu.var(dim=0, correction=0) + logvar.exp().mean(dim=0)
        mu, logvar = (mu - centre) / variance.sqrt(), logvar - variance.log()
    return kl_per_dimension(mu, logvar).mean(dim=0)


def posterior_noise(n: int, latent_dim: int) -> Tensor:
    """The fixed eps (n, L) of all evaluations with one posterior draw an image."""
    return torch.randn(n, latent_dim, generator=cli.rng(NOISE_SEED))


@torch.inference_mode()
def importance_weighted_nll(
    model: VAE, images: Tensor, n_samples: int, device: torch.device, precision: str, batch_size: int
) -> Tensor:
    """-L_K of Burda et al. 2016 (eq. 8) for images (N, 1, 28, 28) uint8: (N,) float64 nats, an upper bound of -log p(x).

    Each image is encoded once, and its K = `n_samples` draws are decoded in batches of at most `batch_size`, so memory
    does not grow with K. The draws of image i depend on i alone.
    """
    nll = torch.empty(len(images), dtype=torch.float64)  # whole: small pieces would scatter over the heap, and it grow
    n_together = max(1, batch_size // n_samples)  # images whose draws fill a batch
    for i, chunk in enumerate(tqdm(images.split(n_together), desc="importance sampling", leave=False, disable=None)):
        x = to_float(chunk, device)  # (B, 1, 28, 28)
        with cli.autocast(precision, device):
            mu, logvar = model.encode(x)  # (B, L)
        eps = [torch.randn(n_samples, mu.shape[1], generator=cli.rng(NOISE_SEED, i * n_together + j)) for j in range(len(x))]
        z = model.reparameterize(mu[:, None], logvar[:, None], torch.stack(eps).to(device))  # (B, K, L)
        log_w = -gaussian_log_prob(z, mu[:, None], logvar[:, None])  # (B, K)
        for part in torch.arange(n_samples).split(batch_size):
            z_part = z[:, part]  # (B, P, L)
            with cli.autocast(precision, device):
                logits = model.decode(z_part)  # (B, P, 1, 28, 28)
            log_w[:, part] += model.prior.log_prob(z_part) - bernoulli_nll(logits, x[:, None])
        nll[i * n_together :][: len(x)] = -log_mean_exp(log_w.cpu().double())
    return nll


@torch.inference_mode()
def grid_log_sum(model: VAE, x: Tensor, n: int, shift: tuple[float, float]) -> Tensor:
    """log of the sum of p(x|u) p(u) over a grid of n * n points u, moved by `shift` of its steps: x (N, 784) -> (N,) float64.

    log p(x|u) for all images and a row of the grid is one matrix product: x . logits - sum of softplus(logits).
    """
    step = 2 * GRID_LIMIT / n
    rows, columns = (torch.arange(n, device=x.device) * step - GRID_LIMIT + by * step for by in shift)
    total = torch.full((len(x),), -math.inf, dtype=torch.float64)
    for row in tqdm(rows, desc=f"quadrature, {n} x {n}", leave=False, disable=None):
        u = torch.stack((row.expand(n), columns), dim=1)  # (n, 2)
        logits = model.decode(model.prior.from_normal(u)).flatten(1)  # (n, 784)
        log_joint = x @ logits.T + (standard_normal_log_prob(u) - F.softplus(logits).sum(dim=1))  # (N, n)
        total = torch.logaddexp(total, log_joint.logsumexp(dim=1).cpu().double())
    return total


def exact_nll(model: VAE, images: Tensor, device: torch.device, n_grid: int = COARSEST) -> tuple[Tensor, int, float]:
    """-log p(x) by the trapezoidal rule over a grid in two dimensions, for images (N, 1, 28, 28) uint8; it needs no encoder.

    The grid is one of u ~ N(0, I), of which the prior makes z. It starts with `n_grid` points along each axis, and its
    step is halved until that moves the mean by less than GRID_TOLERANCE. Returns the nats (N,) float64, the final
    points along each axis, and what the last halving moved.
    """
    x = to_float(images, device).flatten(1)  # (N, 784)
    log_sum, change = grid_log_sum(model, x, n_grid, (0, 0)), math.inf
    while change >= GRID_TOLERANCE and n_grid < FINEST:
        between = [grid_log_sum(model, x, n_grid, shift) for shift in ((0, 0.5), (0.5, 0), (0.5, 0.5))]
        finer = torch.stack((log_sum, *between)).logsumexp(dim=0)
        change = abs((finer - log_sum).mean().item() - math.log(4))  # a cell is now a quarter as large
        log_sum, n_grid = finer, 2 * n_grid
    return -(log_sum + 2 * math.log(2 * GRID_LIMIT / n_grid)), n_grid, change


def knn_accuracy(mu: Tensor, labels: Tensor, labelled_mu: Tensor, labelled: Tensor, n_draws: int = 20) -> Tensor:
    """Accuracy of 5 nearest neighbours among 1,000 labelled images, for each of `n_draws` seeded draws of those: (n_draws,).

    `mu` (N, L) and `labels` (N,) to classify; `labelled_mu` (M, L) and `labelled` (M,) to draw from. S-VAE's protocol
    (Davidson et al. 2018, Section 5.3). Of labels with equal votes the smallest wins.
    """
    accuracies = []
    for draw in range(n_draws):
        chosen = torch.randperm(len(labelled_mu), generator=cli.rng(NOISE_SEED, draw))[:N_LABELLED]
        nearest = torch.cdist(mu, labelled_mu[chosen]).topk(N_NEIGHBOURS, largest=False).indices  # (N, 5)
        votes = F.one_hot(labelled[chosen][nearest], num_classes=10).sum(dim=1)  # (N, 10)
        accuracies.append((votes.argmax(dim=1) == labels).double().mean())
    return torch.stack(accuracies)


def evaluate(args: Namespace) -> dict:
    """All figures of a checkpoint as a flat dict of plain values, in the order of the table."""
    device = cli.pick_device(args.device)
    precision = "fp32" if args.exact else cli.pick_precision(args.precision, device)  # as the integral is
    model, checkpoint = load_checkpoint(args.model_params, device)
    latent_dim, dataset = model.config.latent_dim, checkpoint["args"]["dataset"]
    if args.exact and latent_dim != 2:
        raise UserError(f"--exact integrates over 2 latent dimensions, this model has {latent_dim}; leave the flag out.")
    mode = args.binarize or checkpoint["args"]["binarize"]
    grey, labels = load_mnist(args.data_dir, args.split, dataset)
    order = torch.randperm(len(grey), generator=cli.rng(NOISE_SEED))[: args.n_images]
    images, labels = fixed_binarization(grey, mode)[order], labels[order]
    eps = posterior_noise(len(grey), latent_dim)[order]

    terms = elbo_terms(model, images, eps, device, precision, args.batch_size)
    result = {"model_params": str(args.model_params), "dataset": dataset, "split": args.split, "binarize": mode}
    result |= {"n_images": len(images), "latent_dim": latent_dim, "prior": model.config.prior, "precision": precision}

    def add(name, values):  # (N,): their mean and its standard error
        if not torch.isfinite(values).all():
            raise UserError(f"the checkpoint's {name} is not finite for some images: its weights are broken; train it again.")
        result[name] = values.mean().item()
        result[f"{name}_stderr"] = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else 0.0

    add("recon", terms["recon"])
    add("kl", terms["kl"])
    add("neg_elbo", terms["recon"] + terms["kl"])
    nll = importance_weighted_nll(model, images, args.n_importance_samples, device, precision, args.batch_size)
    add("nll", nll)
    result["n_importance_samples"] = args.n_importance_samples
    result["gap"] = result["neg_elbo"] - result["nll"]
    if args.exact:
        exact, result["n_grid"], result["grid_change"] = exact_nll(model, images, device)
        add("exact_nll", exact)
        add("nll_above_exact", nll - exact)
    result["active_units"] = int((terms["mu"].var(dim=0, correction=0) > ACTIVE_VARIANCE).sum())
    result["kl_of_dimension"] = kl_of_dimensions(terms["mu"], terms["logvar"], model.config.prior).tolist()

    train_grey, train_labels = load_mnist(args.data_dir, "train", dataset)
    train_images = fixed_binarization(train_grey, mode)
    no_noise = torch.zeros(len(train_images), latent_dim)
    train_mu = elbo_terms(model, train_images, no_noise, device, precision, args.batch_size)["mu"]
    accuracies = knn_accuracy(terms["mu"], labels, train_mu, train_labels)
    result["knn_accuracy"], result["knn_accuracy_std"] = accuracies.mean().item(), accuracies.std().item()
    return result


def print_table(result: dict) -> None:
    """The figures for a reader: value, standard error, meaning."""
    r = result
    pixels = {"none": "grey pixels", "dynamic": "one Bernoulli draw of the pixels", "threshold": "pixels above 0.5"}
    print(f"{r['model_params']}: {r['latent_dim']} latent dimensions, {r['dataset']}" + ", flow prior" * (r["prior"] == "flow"))
    what = f"{r['n_images']:,} {r['split']} images, {pixels[r['binarize']]}, {r['precision']}"
    print(f"{what}; nats per image, +- one standard error\n")

    def row(name, key, comment=""):
        print(f"  {name:<22}{r[key]:9.3f} +- {r[key + '_stderr']:.3f}  {comment}".rstrip())

    not_a_likelihood = "(grey pixels: a cross-entropy, not a likelihood)" if r["binarize"] == "none" else ""
    row("recon", "recon", "-log p(x|z), z from the posterior")
    row("kl", "kl", "KL(q(z|x) || p(z))")
    row("-ELBO", "neg_elbo", not_a_likelihood)
    row(f"NLL, K={r['n_importance_samples']}", "nll", not_a_likelihood)
    print(f"  {'gap':<22}{r['gap']:9.3f}            -ELBO minus NLL")
    if "exact_nll" in r:
        row("NLL, exact", "exact_nll", f"{r['n_grid']} x {r['n_grid']} grid; halving its step moved it {r['grid_change']:.4f}")
        row("NLL above exact", "nll_above_exact")
        if r["nll_above_exact"] > SMALL_GAP + 2 * r["nll_above_exact_stderr"]:
            print(f"  note: above {SMALL_GAP} nats: K is too small, or the encoder misses modes of the true posterior")
    print(f"\n  active units {r['active_units']} of {r['latent_dim']} (variance of mu over images > {ACTIVE_VARIANCE})")
    of_what = "KL per dimension" if r["prior"] == "normal" else "KL per dimension from the aggregate posterior"
    print(f"  {of_what} " + " ".join(f"{kl:.2f}" for kl in sorted(r["kl_of_dimension"], reverse=True)))
    n_collapsed = sum(kl < COLLAPSED_KL for kl in r["kl_of_dimension"])
    if n_collapsed:
        print(f"  warning: the posterior has collapsed in {n_collapsed} of {r['latent_dim']} dimensions")
    print(
        f"  k-NN accuracy {r['knn_accuracy']:.4f} +- {r['knn_accuracy_std']:.4f} "
        f"(k={N_NEIGHBOURS}, {N_LABELLED:,} labelled images, standard deviation over 20 draws)"
    )


def main() -> None:
    parser = cli.parser("Prints a checkpoint's figures on held-out images, in nats per image.")
    parser.add_argument("--model_params", type=Path, required=True, help="a .pth file that train.py wrote")
    cli.add_common_flags(parser, batch_size=1024)
    parser.add_argument("--split", choices=("val", "test"), default="test", help="which images")
    parser.add_argument("--n_images", type=cli.integer(1, 10_000), default=10_000, help="of a fixed permutation the first")
    parser.add_argument("--binarize", choices=BINARIZE, default=None, help="default: as the checkpoint was trained")
    parser.add_argument("--n_importance_samples", type=cli.integer(1, 10**6), default=500, metavar="K", help="for the NLL")
    parser.add_argument("--exact", action="store_true", help="2 dimensions: integrate over the prior, in fp32")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    result = evaluate(args := parser.parse_args())
    print(json.dumps(result)) if args.json else print_table(result)


if __name__ == "__main__":
    cli.run(main)
