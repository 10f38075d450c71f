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
from estimators import ACTIVE_VARIANCE, N_KNN_DRAWS, N_LABELLED, N_NEIGHBOURS
from utils import cli
from utils.cli import UserError, number
from utils.device import pick_device, pick_precision, rng

PIXELS = {
    "none": "grey pixels: a cross-entropy, not a likelihood",
    "dynamic": "one Bernoulli draw of the pixels",
}
ROWS = {  # of the table: key -> name, meaning
    "recon": ("recon", "-log p(x|z), z from the posterior"),
    "kl": ("kl", "KL(q(z|x) || p(z))"),
    "neg_elbo": ("-ELBO", "recon + kl"),
    "nll": ("NLL, K={n_importance_samples}", "-log p(x) by importance sampling"),
    "gap": ("gap", "-ELBO minus NLL"),
    "encoder_neg_elbo": ("encoder's -ELBO", "before {n_refining_steps} steps on each posterior"),
    "refining_gain": ("refining", "the gain of these steps; below are metrics of the encoder"),
    "exact_nll": ("NLL, exact", "{n_grid} points per axis, halving the step moved it {change:.4f}"),
    "nll_above_exact": ("NLL above exact", "large if K is small, or the posteriors are far off"),
}


def evaluate(args: Namespace) -> dict:
    """All metrics of a checkpoint as a flat dict of plain values. Raises UserError."""
    model, checkpoint = load_checkpoint(args.model_params, pick_device(args.device))
    latent_dim, dataset = model.config.latent_dim, checkpoint["args"]["dataset"]
    if args.exact and latent_dim > 2:
        raise UserError(f"--exact needs 1 or 2 latent dimensions, not {latent_dim}; leave it out.")
    mode = args.binarize or checkpoint["args"]["binarize"]
    precision = "fp32" if args.exact else pick_precision(args.precision, model.device)
    how = {"precision": precision, "batch_size": args.batch_size}
    result = {"model_params": str(args.model_params), "dataset": dataset, "split": args.split}
    result |= {"binarize": mode, "precision": precision, "prior": model.config.prior}
    result |= {"latent_dim": latent_dim, "n_images": args.n_images}
    result |= {"n_importance_samples": args.n_importance_samples}
    result |= {"n_refining_steps": args.n_refining_steps}

    images, labels = load_mnist(args.data_dir, args.split, dataset)
    order = torch.randperm(len(images), generator=rng(estimators.NOISE_SEED))[: args.n_images]
    eps = estimators.posterior_noise(len(images), latent_dim)[order]
    images, labels = binarize(images, mode)[order], labels[order]
    q = encoder = estimators.posteriors(model, images, **how)
    if args.n_refining_steps > 0:
        q = estimators.refined_posteriors(model, images, q, args.n_refining_steps, **how)
    terms = estimators.elbo_terms(model, images, q, eps, **how)
    nll = estimators.importance_weighted_nll(model, images, q, args.n_importance_samples, **how)
    neg_elbo = terms.recon + terms.kl
    per_image = {"recon": terms.recon, "kl": terms.kl, "neg_elbo": neg_elbo, "nll": nll}
    per_image["gap"] = neg_elbo - nll
    if args.n_refining_steps > 0:
        before = estimators.elbo_terms(model, images, encoder, eps, **how)
        per_image["encoder_neg_elbo"] = before.recon + before.kl
        per_image["refining_gain"] = before.recon + before.kl - neg_elbo
    if args.exact:
        exact, result["n_grid"], result["change"] = estimators.exact_nll(model, images)
        per_image |= {"exact_nll": exact, "nll_above_exact": nll - exact}
    for name, values in per_image.items():
        result |= mean_and_error(name, values, args.model_params)
    result["active_units"] = int(estimators.active_units(encoder.mu).sum())
    result["kl_of_dimension"] = estimators.kl_of_dimensions(encoder, model.config.prior).tolist()

    known, known_labels = load_mnist(args.data_dir, "train", dataset)
    known_mu = estimators.posteriors(model, binarize(known, mode), **how).mu.cpu()
    accuracies = estimators.knn_accuracy(encoder.mu.cpu(), labels, known_mu, known_labels)
    knn = {"knn_accuracy": accuracies.mean().item(), "knn_accuracy_std": accuracies.std().item()}
    return result | knn


def mean_and_error(name: str, values: Tensor, path: Path) -> dict[str, float]:
    """The mean over images (N,) and its standard error, 0 for one image. Raises UserError."""
    if not torch.isfinite(values).all():
        raise UserError(f"{name} is not finite: the weights of {path} are broken; train it again.")
    n = len(values)
    error = values.std(correction=min(1, n - 1)).item() / n**0.5
    return {name: values.mean().item(), f"{name}_stderr": error}


def print_table(r: dict) -> None:
    """The metrics for a reader: value, standard error, meaning."""
    of = f"{r['latent_dim']} latent dimensions, {r['prior']} prior, {r['dataset']}"
    print(f"{r['model_params']}: {of}")
    print(f"{r['n_images']:,} {r['split']} images ({PIXELS[r['binarize']]}), {r['precision']}")
    print("nats per image, +- one standard error\n")
    for key, (name, meaning) in ROWS.items():
        if key in r:
            value = f"{r[key]:9.3f} +- {r[f'{key}_stderr']:.3f}"
            print(f"  {name.format(**r):<16}{value}  {meaning.format(**r)}")
    units = f"{r['active_units']} of {r['latent_dim']}"
    print(f"\n  active units {units} (variance of mu over images > {ACTIVE_VARIANCE})")
    kl = " ".join(f"{kl:.2f}" for kl in sorted(r["kl_of_dimension"], reverse=True))
    print(f"  KL per dimension {kl}")
    knn = f"{r['knn_accuracy']:.4f} +- {r['knn_accuracy_std']:.4f}"
    how = f"k={N_NEIGHBOURS}, {N_LABELLED:,} labelled images, std over {N_KNN_DRAWS} draws"
    print(f"  k-NN accuracy {knn} ({how})")


def main() -> None:
    parser = cli.parser("Prints a checkpoint's metrics on held-out images, in nats per image.")
    add = parser.add_argument
    add("--model_params", type=Path, required=True, help="a .pth file that train.py wrote")
    cli.add_common_flags(parser, batch_size=1024)
    add("--split", choices=("val", "test"), default="test", help="which images")
    add("--n_images", type=number(1, 10_000), default=10_000, help="first n of a fixed permutation")
    add("--binarize", choices=BINARIZE, help="default: as the checkpoint was trained")
    add("--n_importance_samples", type=number(1), default=500, metavar="K", help="for the NLL")
    refining = "steps of Adam that improve each image's posterior by its own -ELBO"
    add("--n_refining_steps", type=number(0), default=0, metavar="N", help=refining)
    add("--exact", action="store_true", help="1 or 2 dimensions: integrate over z, in fp32")
    add("--json", action="store_true", help="print one JSON object and nothing else")
    args = parser.parse_args()
    result = evaluate(args)
    if args.json:
        print(json.dumps(result))
    else:
        print_table(result)


if __name__ == "__main__":
    cli.run(main)
