"""A checkpoint's figures on held-out images, as a table or as JSON: a thin script over estimators.

python3 evaluate.py --model_params pretrained/vae_mnist.pth
python3 evaluate.py --model_params pretrained/vae_mnist.pth --exact --json
"""

import json
from argparse import Namespace
from pathlib import Path

from utils import cli
from utils.checkpoint import load_checkpoint
from utils.cli import UserError
from utils.device import pick_device, pick_precision, rng

import torch
from torch import Tensor

import estimators
from data import BINARIZE, fixed_binarization, load_mnist
from estimators import ACTIVE_VARIANCE, N_KNN_DRAWS, N_LABELLED, N_NEIGHBOURS

PIXELS = {
    "none": "grey pixels: a cross-entropy, not a likelihood",
    "dynamic": "one Bernoulli draw of the pixels",
    "threshold": "pixels above 0.5",
}
COUNTS = ("n_images", "n_importance_samples", "n_refining_steps")
SMALL_GAP = 0.1  # nats that an importance-sampled NLL at K = 5000 may lie above the exact one


def evaluate(args: Namespace) -> dict:
    """All figures of a checkpoint as a flat dict of plain values. Raises UserError."""
    model, checkpoint = load_checkpoint(args.model_params, pick_device(args.device))
    latent_dim, prior = model.config.latent_dim, model.config.prior
    if args.exact and latent_dim != 2:
        raise UserError(f"--exact needs 2 latent dimensions, not {latent_dim}; leave it out.")
    precision = "fp32" if args.exact else pick_precision(args.precision, model.device)
    how = {"precision": precision, "batch_size": args.batch_size}
    dataset, mode = checkpoint["args"]["dataset"], args.binarize or checkpoint["args"]["binarize"]
    result = {"model_params": str(args.model_params), "dataset": dataset, "split": args.split}
    result |= {"binarize": mode, "precision": precision, "prior": prior, "latent_dim": latent_dim}
    result |= {name: getattr(args, name) for name in COUNTS}

    images, labels = load_mnist(args.data_dir, args.split, dataset)
    order = torch.randperm(len(images), generator=rng(estimators.NOISE_SEED))[: args.n_images]
    eps = estimators.posterior_noise(len(images), latent_dim)[order]
    images, labels = fixed_binarization(images, mode)[order], labels[order]
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
        per_image["refining_gain"] = per_image["encoder_neg_elbo"] - neg_elbo
    if args.exact:
        exact, result["n_grid"], result["grid_change"] = estimators.exact_nll(model, images)
        per_image |= {"exact_nll": exact, "nll_above_exact": nll - exact}
    for name, values in per_image.items():
        result |= mean_and_error(name, values, args.model_params)
    result["active_units"] = int(estimators.active_units(encoder.mu).sum())
    kl = estimators.kl_of_dimensions(*encoder, prior)
    result["kl_of_dimension"] = kl.tolist()

    known, known_labels = load_mnist(args.data_dir, "train", dataset)
    known_mu, _ = estimators.posteriors(model, fixed_binarization(known, mode), **how)
    accuracies = estimators.knn_accuracy(encoder.mu, labels, known_mu, known_labels)
    knn = {"knn_accuracy": accuracies.mean().item(), "knn_accuracy_std": accuracies.std().item()}
    return result | knn


def mean_and_error(name: str, values: Tensor, path: Path) -> dict[str, float]:
    """A figure of each image (N,) as its mean and the standard error of that. Raises UserError."""
    if not torch.isfinite(values).all():
        raise UserError(f"{name} is not finite: the weights of {path} are broken; train it again.")
    n = len(values)
    error = values.std(correction=min(1, n - 1)).item() / n**0.5  # 0 for one image
    return {name: values.mean().item(), f"{name}_stderr": error}


def print_table(r: dict) -> None:
    """The figures for a reader: value, standard error, meaning."""
    of = f"{r['latent_dim']} latent dimensions, {r['prior']} prior, {r['dataset']}"
    print(f"{r['model_params']}: {of}")
    print(f"{r['n_images']:,} {r['split']} images ({PIXELS[r['binarize']]}), {r['precision']}")
    print("nats per image, +- one standard error\n")
    rows = {
        "recon": ("recon", "-log p(x|z), z from the posterior"),
        "kl": ("kl", "KL(q(z|x) || p(z))"),
        "neg_elbo": ("-ELBO", "recon + kl"),
        "nll": (f"NLL, K={r['n_importance_samples']}", "-log p(x) by importance sampling"),
        "gap": ("gap", "-ELBO minus NLL"),
    }
    if r["n_refining_steps"] > 0:
        steps = f"{r['n_refining_steps']} steps on each image's posterior"
        rows["encoder_neg_elbo"] = ("encoder's -ELBO", f"before {steps}")
        rows["refining_gain"] = ("refining", "what they gained; below are figures of the encoder")
    if "exact_nll" in r:
        size, change = f"{r['n_grid']} x {r['n_grid']}", f"{r['grid_change']:.4f}"
        grid = f"{size} grid, the last halving of its step moved it {change}"
        rows |= {"exact_nll": ("NLL, exact", grid), "nll_above_exact": ("NLL above exact", "")}
    for key, (name, meaning) in rows.items():
        print(f"  {name:<16}{r[key]:9.3f} +- {r[f'{key}_stderr']:.3f}  {meaning}".rstrip())
    if r.get("nll_above_exact", 0) > SMALL_GAP + 2 * r.get("nll_above_exact_stderr", 0):
        print("  note: K is too small, or the posteriors are far from the true ones")
    units = f"{r['active_units']} of {r['latent_dim']}"
    print(f"\n  active units {units} (variance of mu over images > {ACTIVE_VARIANCE})")
    kl = " ".join(f"{kl:.2f}" for kl in sorted(r["kl_of_dimension"], reverse=True))
    print(f"  KL per dimension {kl}")
    knn = f"{r['knn_accuracy']:.4f} +- {r['knn_accuracy_std']:.4f}"
    how = f"k={N_NEIGHBOURS}, {N_LABELLED:,} labelled images, deviation over {N_KNN_DRAWS} draws"
    print(f"  k-NN accuracy {knn} ({how})")


def main() -> None:
    parser = cli.parser("Prints a checkpoint's figures on held-out images, in nats per image.")
    add = parser.add_argument
    add("--model_params", type=Path, required=True, help="a .pth file that train.py wrote")
    cli.add_common_flags(parser, batch_size=1024)
    add("--split", choices=("val", "test"), default="test", help="which images")
    number_of_images = cli.integer(1, 10_000)
    add("--n_images", type=number_of_images, default=10_000, help="first n of a fixed permutation")
    add("--binarize", choices=BINARIZE, help="default: as the checkpoint was trained")
    draws = cli.integer(1, 10**6)
    add("--n_importance_samples", type=draws, default=500, metavar="K", help="for the NLL")
    refining = "steps of Adam that improve each image's posterior by its own -ELBO"
    add("--n_refining_steps", type=cli.integer(0, 1000), default=0, metavar="N", help=refining)
    add("--exact", action="store_true", help="2 dimensions: integrate over the prior, in fp32")
    add("--json", action="store_true", help="print one JSON object and nothing else")
    args = parser.parse_args()
    result = evaluate(args)
    if args.json:
        print(json.dumps(result))
    else:
        print_table(result)


if __name__ == "__main__":
    cli.run(main)
