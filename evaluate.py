"""Prints a checkpoint's metrics on held-out images, as a table or as JSON.

python3 evaluate.py --model_params pretrained/vae_mnist.pth
python3 evaluate.py --model_params pretrained/vae_mnist.pth --exact --json
"""

import json
from argparse import Namespace
from pathlib import Path

import torch
from torch import Tensor

import estimators
from checkpoint import load_checkpoint
from data import BINARIZE, binarize, load_mnist
from utils import cli
from utils.cli import UserError, number
from utils.device import pick_device, pick_precision, rng

PIXELS = {
    "none": "grey pixels: a cross-entropy, not a likelihood",
    "dynamic": "one Bernoulli draw of the pixels",
}
ROWS = {  # key -> name and meaning in the printed table
    "recon": ("recon", "-log p(x|z), z from the posterior"),
    "kl": ("kl", "KL(q(z|x) || p(z)); with a flow, from one draw"),
    "neg_elbo": ("-ELBO", "recon + kl"),
    "nll": ("NLL, K={n_importance_samples}", "-log p(x) by importance sampling"),
    "exact_nll": ("NLL, exact", "{n_grid} points per axis; step halving moved it by {change:.4f}"),
}
N_LABELLED, N_NEIGHBOURS, N_KNN_DRAWS = 1000, 5, 20
FLAGS = ("split", "n_images", "n_importance_samples")


def evaluate(args: Namespace) -> dict:
    """All metrics of a checkpoint as a flat dict, ready for JSON. Raises UserError."""
    model, checkpoint = load_checkpoint(args.model_params, pick_device(args.device))
    latent_dim, dataset = model.config.latent_dim, checkpoint["args"]["dataset"]
    if args.exact and latent_dim > 2:
        raise UserError(f"--exact needs 1 or 2 latent dimensions, not {latent_dim}; leave it out.")
    mode = args.binarize or checkpoint["args"]["binarize"]
    model.precision = "fp32" if args.exact else pick_precision(args.precision, model.device)
    result = {"model_params": str(args.model_params), "dataset": dataset, "binarize": mode}
    result |= {"latent_dim": latent_dim, "prior": model.config.prior, "precision": model.precision}
    result |= {name: getattr(args, name) for name in FLAGS}

    images, labels = load_mnist(args.data_dir, args.split, dataset)
    order = torch.randperm(len(images), generator=rng(estimators.NOISE_SEED))[: args.n_images]
    eps = estimators.posterior_noise(len(images), latent_dim)[order]
    images, labels, size = binarize(images, mode)[order], labels[order], args.batch_size
    q = estimators.posteriors(model, images, size)
    recon, kl, _ = estimators.elbo_terms(model, images, q, eps, size)
    nll = estimators.importance_weighted_nll(model, images, q, args.n_importance_samples, size)
    per_image = {"recon": recon, "kl": kl, "neg_elbo": recon + kl, "nll": nll}
    if args.exact:
        exact, result["n_grid"], result["change"] = estimators.exact_nll(model, images)
        per_image["exact_nll"] = exact
    for name, values in per_image.items():
        error = values.std().item() / len(values) ** 0.5
        result |= {name: values.mean().item(), f"{name}_stderr": error}

    known, known_labels = load_mnist(args.data_dir, "train", dataset)
    known_mu = estimators.posteriors(model, binarize(known, mode), size).mu.cpu()
    return result | {
        "active_units": int(estimators.active_units(q.mu).sum()),
        "kl_of_dimension": estimators.kl_of_dimensions(q, model.config.prior).tolist(),
        "knn_accuracy": knn_accuracy(q.mu.cpu(), labels, known_mu, known_labels),
    }


def knn_accuracy(mu: Tensor, labels: Tensor, known_mu: Tensor, known_labels: Tensor) -> float:
    """5-nearest-neighbour accuracy, averaged over seeded draws of 1,000 labelled images.

    Predicts the `labels` (N,) of `mu` (N, L) from `known_mu` (M, L) and `known_labels` (M,).
    Ties go to the smallest label. Follows Davidson et al. 2018 (S-VAE), Section 5.3.
    """
    accuracies = []
    for draw in range(N_KNN_DRAWS):
        order = torch.randperm(len(known_mu), generator=rng(estimators.NOISE_SEED, draw))
        chosen = order[:N_LABELLED]
        distances = torch.cdist(mu, known_mu[chosen])  # (N, 1000)
        nearest = distances.topk(N_NEIGHBOURS, largest=False).indices  # (N, 5)
        votes = known_labels[chosen][nearest].mode(dim=1).values  # (N,)
        accuracies.append((votes == labels).double().mean())
    return torch.stack(accuracies).mean().item()


def print_table(r: dict) -> None:
    """Prints each metric with its value, standard error and meaning."""
    print(f"{r['model_params']}: {r['latent_dim']} dimensions, {r['prior']} prior, {r['dataset']}")
    print(f"{r['n_images']:,} {r['split']} images ({PIXELS[r['binarize']]}), {r['precision']}")
    print("nats per image, +- one standard error\n")
    for key, (name, meaning) in ROWS.items():
        if key in r:
            value = f"{r[key]:9.3f} +- {r[f'{key}_stderr']:.3f}"
            print(f"  {name.format(**r):<16}{value}  {meaning.format(**r)}")
    units = f"{r['active_units']} of {r['latent_dim']}"
    print(f"\n  active units {units} (variance of mu over images > {estimators.ACTIVE_VARIANCE})")
    kl = " ".join(f"{kl:.2f}" for kl in sorted(r["kl_of_dimension"], reverse=True))
    print(f"  KL per dimension {kl}")
    how = f"k={N_NEIGHBOURS}, mean over {N_KNN_DRAWS} draws of {N_LABELLED:,} labelled images"
    print(f"  k-NN accuracy {r['knn_accuracy']:.4f} ({how})")


def main() -> None:
    parser = cli.parser("Prints a checkpoint's metrics on held-out images, in nats per image.")
    add = parser.add_argument
    add("--model_params", type=Path, required=True, help="a model's .pth file")
    cli.add_common_flags(parser, batch_size=1024)
    add("--split", choices=("val", "test"), default="test", help="split to evaluate")
    add("--n_images", type=number(2, 10_000), default=10_000, help="size of a fixed random subset")
    add("--binarize", choices=BINARIZE, help="pixels (default: as in training)")
    add("--n_importance_samples", type=number(1), default=500, metavar="K", help="draws for an NLL")
    add("--exact", action="store_true", help="integrate over z, in fp32 (1 or 2 dimensions only)")
    add("--json", action="store_true", help="print one JSON object and nothing else")
    args = parser.parse_args()
    result = evaluate(args)
    if args.json:
        print(json.dumps(result))
    else:
        print_table(result)


if __name__ == "__main__":
    cli.run(main)
