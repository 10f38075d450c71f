"""Trains a VAE: flags -> images -> epochs -> checkpoints. The formulas are in loss.py.

python3 train.py
python3 train.py --resume runs/MNIST_mlp_2d/last.pth
"""

import math
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW
from torchvision.utils import save_image
from tqdm import tqdm

from checkpoint import load_checkpoint, save_checkpoint
from data import BINARIZE, DATASETS, batches, binarize, load_mnist
from estimators import elbo_terms, posterior_noise, posteriors
from loss import N_PIXELS, bernoulli_nll, negative_bound, squared_error
from model import ARCHS, PRIORS, VAE, WIDTHS, VAEConfig
from utils import cli, device
from utils.cli import UserError, number
from utils.files import new_folder, write_file

BETAS, WARMUP_STEPS = (0.9, 0.99), 100  # AdamW's betas; steps of learning-rate warm-up
MAX_GRADIENT_NORM = 1000.0  # several times the usual norm, so it clips only rare outliers
# Averaged weights: every AVERAGE_EVERY-th step t counts in proportion to t ** AVERAGE_POWER. The
# last seventh of the steps dominates (Karras et al. 2024, https://arxiv.org/abs/2312.02696, eq. 8).
AVERAGE_EVERY, AVERAGE_POWER = 8, 6
FADED = 0.75  # deformation fades to 0 over this share of the run
COLLAPSED_KL = 0.1  # nats per image: below this, z hardly depends on x
SAVE_SECONDS = 10  # minimum time between two writes of last.pth, except at the end
COLUMNS = ("recon_loss", "kld_loss", "neg_elbo")  # in metrics.csv, prefixed by train_ or val_


def make_parser() -> ArgumentParser:
    """The flags of a run and their defaults."""
    parser = cli.parser("Trains a VAE; writes checkpoints, metrics.csv and samples.")
    cli.add_seed_flag(parser)
    cli.add_common_flags(parser, batch_size=512)
    add = parser.add_argument
    add("--n_epochs", type=number(1), default=16, help="epochs of the whole run, resumed or not")
    add("--lr", type=number(0.0), default=6e-3, help="peak learning rate of AdamW")
    add("--weight_decay", type=number(0.0), default=0.01, help="weight decay of AdamW")
    add("--recon_loss", choices=("bce", "mse"), default="bce", help="reconstruction loss per pixel")
    add("--recon_weight", type=number(0.0), default=600.0, help="784 / beta (784: -ELBO with bce)")
    add("--kl_warmup", type=number(0), default=0, help="steps until the KL weight reaches 1")
    add("--n_importance_samples", type=number(1), default=1, help="samples in the bound (1: ELBO)")
    add("--dataset", choices=DATASETS, default="MNIST", help="name of the dataset in torchvision")
    add("--binarize", choices=BINARIZE, default="none", help="grey pixels, or x' ~ Bernoulli(x)")
    add("--deform", type=number(0.0), default=0.0, help="std of random linear image distortions")
    add("--n_train", type=number(1, 50_000), default=50_000, help="train on the first N images")
    add("--arch", choices=ARCHS, default=VAEConfig.arch, help="residual MLP or convolutions")
    add("--latent_dim", type=number(1), default=VAEConfig.latent_dim, help="size of z")
    widths = " or ".join(f"{width} ({arch})" for arch, width in WIDTHS.items())
    add("--width", type=number(1), help=f"hidden units or channels (default: {widths})")
    add("--n_blocks", type=number(0), default=VAEConfig.n_blocks, help="decoder's residual blocks")
    add("--prior", choices=PRIORS, default=VAEConfig.prior, help="N(0, I), or a RealNVP flow")
    add("--save_dir", type=Path, help="folder of the run (default: a new one in ./runs)")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--init_from", type=Path, metavar="PTH", help="start from this model")
    start.add_argument("--resume", type=Path, metavar="LAST_PTH", help="resume a stopped run")
    return parser


def parse_flags(argv: list[str] | None = None) -> Namespace:
    """Parses flags, twice if a checkpoint sets defaults and fixes some. Raises UserError."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if start := args.resume or args.init_from:
        _, checkpoint = load_checkpoint(start)
        fixed = checkpoint["config"]
        if args.resume:
            fixed = fixed | checkpoint["args"] | {"save_dir": args.resume.parent}
        pixels = {name: checkpoint["args"][name] for name in ("dataset", "binarize")}
        parser.set_defaults(**(pixels | fixed))
        args = parser.parse_args(argv)
        for name in fixed.keys() - {"n_epochs"}:
            if getattr(args, name) != fixed[name]:  # the user has typed another value
                raise UserError(f"--{name} is fixed by {start}; leave it out.")
    if args.save_dir and not args.resume and (args.save_dir / "best.pth").exists():
        raise UserError(f"{args.save_dir} holds a run; use --resume or another --save_dir.")
    args.device = device.pick_device(args.device)
    args.precision = device.pick_precision(args.precision, args.device)
    return args


def learning_rate(step: int, n_steps: int, peak: float) -> float:
    """A warm-up over 100 steps (at most a tenth of the run) times a parabola from `peak` to 0."""
    warmup = min(1.0, (step + 1) / min(WARMUP_STEPS, 0.1 * n_steps))
    return peak * warmup * (1 - step / n_steps) ** 2


def train_one_epoch(
    model: VAE, average: VAE, optimizer: AdamW, images: Tensor, args: Namespace, epoch: int
) -> Iterator[Tensor]:
    """One pass over images (N, 1, 28, 28) uint8; yields recon, kl and nll of each batch (3, B)."""
    # Random numbers depend only on seed and epoch, so resumed runs match uninterrupted ones.
    rng = device.rng(args.seed, epoch, device=images.device)
    n_steps = math.ceil(len(images) / args.batch_size)
    every = AVERAGE_EVERY if n_steps >= AVERAGE_EVERY else 1  # so each epoch updates the average
    strength = args.deform * max(0.0, 1 - (epoch - 1) / (FADED * args.n_epochs))
    xs = batches(images, args.batch_size, args.binarize, rng, strength)
    model.train()
    for step, x in enumerate(xs, start=(epoch - 1) * n_steps):  # x (B, 1, 28, 28)
        size = (args.n_importance_samples, len(x), model.config.latent_dim)
        eps = torch.randn(size, generator=rng, device=x.device)  # (K, B, L)
        mu, logvar = model.encode(x)  # (B, L) each
        z = model.reparameterize(mu, logvar, eps)  # (K, B, L)
        logits = model.decode(z)  # (K, B, 1, 28, 28)
        nll = bernoulli_nll(logits, x)  # (K, B), reported as part of -ELBO even with mse
        recon = nll if args.recon_loss == "bce" else squared_error(logits, x)  # (K, B)
        kl = model.prior.kl(mu, logvar, z)  # (K, B)
        kl_weight = min(1.0, (step + 1) / (args.kl_warmup + 1))
        loss = negative_bound(recon, kl_weight * kl, args.recon_weight)  # ()

        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.n_epochs * n_steps, args.lr)
        optimizer.step()
        if (step + 1) % every == 0:
            kept = (1 - every / (step + 1)) ** (AVERAGE_POWER + 1)  # integral of t^6: past / all
            for mean, parameter in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(parameter.detach(), 1 - kept)
        yield torch.stack((recon.mean(dim=0), kl.mean(dim=0), nll.mean(dim=0))).detach()


class Run(NamedTuple):
    """The state of a training run."""

    model: VAE
    average: VAE  # has the averaged weights and no gradients; it is validated and saved
    optimizer: AdamW
    metrics: list[dict]  # one row per epoch


def build(args: Namespace, images: Tensor) -> Run:
    """A new or resumed run on `images` (N, 1, 28, 28) uint8. Raises UserError."""
    torch.manual_seed(args.seed)
    if start := args.resume or args.init_from:
        model, checkpoint = load_checkpoint(start, args.device)
    else:
        config = VAEConfig(**{field.name: getattr(args, field.name) for field in fields(VAEConfig)})
        model = VAE(config, images.float().mean(dim=0).cpu() / 255).to(args.device)
    model.precision = args.precision
    average = deepcopy(model).requires_grad_(False).eval()
    optimizer = AdamW(model.parameters(), betas=BETAS, weight_decay=args.weight_decay, fused=True)
    metrics = []
    if args.resume:
        if "optimizer" not in checkpoint:
            raise UserError(f"{args.resume} cannot be resumed; give the run's last.pth.")
        model.load_state_dict(checkpoint["training"])  # replaces the averaged weights
        optimizer.load_state_dict(checkpoint["optimizer"])
        metrics = checkpoint["metrics"]
    return Run(model, average, optimizer, metrics)


def columns(split: str, terms: Tensor) -> dict[str, float]:
    """Averages recon, kl, nll (3, N) over images; recon_loss is per pixel, the rest per image."""
    recon, kl, nll = terms.cpu().double().mean(dim=1).tolist()
    values = (recon / N_PIXELS, kl, nll + kl)
    return {f"{split}_{name}": value for name, value in zip(COLUMNS, values, strict=True)}


def validate(average: VAE, images: Tensor, args: Namespace) -> dict[str, float]:
    """Columns of metrics.csv for held-out images (N, 1, 28, 28) uint8."""
    q = posteriors(average, images)
    nll, kl, squared = elbo_terms(average, images, q, posterior_noise(*q.mu.shape))
    recon = nll if args.recon_loss == "bce" else squared
    return columns("val", torch.stack((recon, kl, nll)))


def run_epoch(run: Run, images: Tensor, val_images: Tensor, args: Namespace) -> None:
    """Trains one epoch, validates, and adds a row to the metrics. Raises UserError."""
    epoch, start = len(run.metrics) + 1, time.perf_counter()
    steps = train_one_epoch(run.model, run.average, run.optimizer, images, args, epoch)
    n_steps = math.ceil(len(images) / args.batch_size)
    bar = tqdm(steps, f"epoch {epoch}", n_steps, leave=False, disable=None)
    row = {"epoch": epoch} | columns("train", torch.cat(list(bar), dim=1))  # list(bar) trains
    seconds = round(time.perf_counter() - start, 3)
    row |= validate(run.average, val_images, args)
    row |= {"lr": run.optimizer.param_groups[0]["lr"], "seconds": seconds}
    weights = sum(p.sum().item() for p in run.model.parameters())  # not finite if a step diverged
    if not math.isfinite(row["train_neg_elbo"] + row["val_neg_elbo"] + weights):
        raise UserError(f"the loss is not finite in epoch {epoch}; start over with a smaller --lr.")
    run.metrics.append(row)


def best_row(metrics: list[dict], args: Namespace) -> dict:
    """The row of best.pth's epoch: the lowest validation loss or, if K > 1, the last."""
    if args.n_importance_samples > 1:  # -ELBO is not the training loss; take the last epoch
        return metrics[-1]
    return min(metrics, key=lambda r: args.recon_weight * r["val_recon_loss"] + r["val_kld_loss"])


def save(run: Run, args: Namespace) -> None:
    """Writes an epoch's files and, every SAVE_SECONDS, the large last.pth. Raises UserError.

    last.pth is written last. A resumed run repeats the epochs after last.pth's.
    """
    model, average, optimizer, metrics = run
    folder = args.save_dir
    if metrics:
        samples = average.sample(100, device.rng(args.seed, device=args.device))
        path = folder / "samples" / f"epoch_{len(metrics):04d}.png"
        write_file(path, lambda file: save_image(samples, file, "PNG", nrow=10, padding=0))
        if metrics[-1] is best_row(metrics, args):
            save_checkpoint(folder / "best.pth", average, args, metrics)
        rows = [metrics[0].keys(), *(row.values() for row in metrics)]
        text = "".join(",".join(map(str, row)) + "\n" for row in rows)
        try:
            write_file(folder / "metrics.csv", lambda file: file.write(text.encode()))
        except UserError:
            print("warning: metrics.csv cannot be written; close the program that has it open.")
    path, is_due = folder / "last.pth", len(metrics) in (0, args.n_epochs)
    if is_due or not path.exists() or time.time() - path.stat().st_mtime > SAVE_SECONDS:
        state = {"training": model.state_dict(), "optimizer": optimizer.state_dict()}
        save_checkpoint(path, average, args, metrics, **state)


def describe(row: dict, split: str) -> str:
    """The losses of one split, for a printed line."""
    recon, kl, neg_elbo = (row[f"{split}_{name}"] for name in COLUMNS)
    return f"{split} recon_loss {recon:.4f}, kld_loss {kl:.4f}, -ELBO {neg_elbo:.2f} nats"


def print_epoch(metrics: list[dict], n_images: int, args: Namespace) -> None:
    """Prints a line about the last epoch, and a warning if z is unused."""
    row = metrics[-1]
    epoch = f"epoch {row['epoch']:{len(str(args.n_epochs))}}/{args.n_epochs}"
    speed = f"{row['seconds']:.1f} s, {n_images / row['seconds']:,.0f} images/s"
    parts = [epoch, describe(row, "train"), describe(row, "val"), speed]
    if row is best_row(metrics, args):
        parts.append("best")
    print(" | ".join(parts), flush=True)
    if row["train_kld_loss"] < COLLAPSED_KL:
        print("warning: the posterior has collapsed; try --kl_warmup 100, or raise --recon_weight.")


def main() -> None:
    args = parse_flags()
    images = load_mnist(args.data_dir, "train", args.dataset)[0][: args.n_train].to(args.device)
    val_images = load_mnist(args.data_dir, "val", args.dataset)[0]
    val_images = binarize(val_images, args.binarize).to(args.device)
    run = build(args, images)
    name = f"{args.dataset}_{args.arch}_{args.latent_dim}d"
    args.save_dir = args.save_dir or new_folder(Path("runs", name))
    last_path = args.save_dir / "last.pth"
    size = f"{sum(p.numel() for p in run.model.parameters()):,} parameters"
    print(f"{size}, {args.device}, {args.precision}; writing to {args.save_dir}")
    try:
        if not args.resume:
            save(run, args)
        while len(run.metrics) < args.n_epochs:
            run_epoch(run, images, val_images, args)
            save(run, args)
            print_epoch(run.metrics, len(images), args)
    except KeyboardInterrupt:
        if last_path.exists():
            command = f"python3 train.py --resume {last_path} --device {args.device}"
            where = f" --data_dir {args.data_dir}" if args.data_dir != cli.DATA_DIR else ""
            print(f"\nstopped; resume with: {command}{where}")
        raise
    best = best_row(run.metrics, args)
    print(f"best epoch {best['epoch']}: {describe(best, 'val')}")
    print(f"next: python3 evaluate.py --model_params {args.save_dir / 'best.pth'}")


if __name__ == "__main__":
    cli.run(main)
