"""Trains a VAE: flags -> data -> epochs -> checkpoints. Owns the loop; the formulas are in loss.py.

python3 train.py
python3 train.py --resume runs/MNIST_mlp_2d/last.pth
torchrun --nproc_per_node=2 train.py
"""

import math
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

from utils import cli, device
from utils.checkpoint import locked_folder, save_checkpoint, write_csv
from utils.cli import UserError
from utils.flags import Settings, read_flags
from utils.images import save_grid

import torch
from torch import Generator, Tensor
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from data import batches, fixed_binarization, load_mnist
from estimators import elbo_terms, posterior_noise, posteriors, stratified_nll
from loss import N_PIXELS, bernoulli_nll, negative_bound, squared_error
from model import VAE, VAEConfig
from optimizer import AdamW, learning_rate

MAX_GRADIENT_NORM = 1000.0  # several times the usual norm: it shortens only the rare wild step
FADED = 0.75  # of the epochs, after which images are no longer deformed
COLLAPSED_KL = 0.1  # nats per image: below this, z says almost nothing about x
STEPS_PER_READ = 20  # between two reads of the loss: a GPU runs ahead meanwhile
FIGURES = ("recon_loss", "kld_loss", "neg_elbo")
N_SAMPLES = 100  # of the prior, drawn after each epoch


def own_batches(images: Tensor, settings: Settings, epoch: int) -> tuple[Iterator[Tensor], int]:
    """The epoch's batches x (B, 1, 28, 28) in a new order, and how many images they hold.

    Or this process's equal share of them. Deformations fade out, so that the model ends with
    the images as they are.
    """
    (rank, world_size), where = device.rank_and_world_size(), images.device
    rng = device.rng(settings.seed, epoch, device=where)
    order = torch.randperm(len(images), generator=rng, device=where)
    order = order[rank : len(images) // world_size * world_size : world_size]
    pixel_rng = device.rng(settings.seed, epoch, rank, 1, device=where)
    strength = settings.deform * max(0.0, 1 - (epoch - 1) / (FADED * settings.n_epochs))
    size, mode = settings.batch_size // world_size, settings.binarize
    return batches(images, order, size, mode, pixel_rng, strength), len(order)


def train_one_epoch(
    model: VAE, optimizer: AdamW, images: Tensor, settings: Settings, epoch: int
) -> dict[str, float]:
    """One pass over `images` (N, 1, 28, 28) uint8 in a new order; means over its images.

    All randomness is a function of (seed, epoch, rank), so a resumed run repeats an epoch bit for
    bit. Raises UserError if the loss is not finite.
    """
    (rank, world_size), where = device.rank_and_world_size(), images.device
    noise_rng = device.rng(settings.seed, epoch, rank, 2, device=where)
    steps, n_images = own_batches(images, settings, epoch)
    n_steps = math.ceil(n_images / (settings.batch_size // world_size))
    sums = torch.zeros(n_steps, 3, device=where)  # over the images of each step
    bar = tqdm(steps, f"epoch {epoch}", n_steps, leave=False, disable=rank > 0 or None)
    model.train()
    for step, x in enumerate(bar):  # (B, 1, 28, 28)
        size = (settings.n_importance_samples, len(x), model.config.latent_dim)
        eps = torch.randn(size, generator=noise_rng, device=where)  # (K, B, L)
        with device.autocast(settings.precision, where):
            logits, mu, logvar = model(x, eps)  # (K, B, 1, 28, 28), (B, L), (B, L)
        z = model.reparameterize(mu, logvar, eps)  # (K, B, L)
        nll = bernoulli_nll(logits, x)  # (K, B)
        recon = nll if settings.recon_loss == "bce" else squared_error(logits, x)
        kl = model.prior.kl(mu, logvar, z)  # (K, B)
        now = (epoch - 1) * n_steps + step
        loss = training_loss(model, x, recon, kl, settings, now, noise_rng)

        model.zero_grad()
        loss.backward()
        device.average_over_processes(p.grad for p in model.parameters())
        clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        lr = learning_rate(now, settings.n_epochs * n_steps, settings.lr)
        optimizer.step(lr, lr * encoder_pace(logvar, settings))

        sums[step] = torch.stack((recon.mean(), kl.mean(), nll.mean())).detach() * len(x)
        if (step + 1) % STEPS_PER_READ == 0 or step + 1 == n_steps:
            check_finite(sums.sum().item(), f"epoch {epoch}, step {step + 1}", optimizer.lr)
            bar.set_postfix_str(f"loss {loss.item():.2f}", refresh=False)
    device.average_over_processes([sums])
    return figures("train", *(sums.cpu().double().sum(dim=0) / n_images).tolist())


def training_loss(
    model: VAE, x: Tensor, recon: Tensor, kl: Tensor, settings: Settings, step: int, rng: Generator
) -> Tensor:
    """The negative bound of x (B, 1, 28, 28), recon and kl (K, B); with a grid, half of it: ().

    `step` is that of the whole run: in the first ones kl may weigh less.
    """
    weight = min(1.0, (step + 1) / (settings.kl_warmup + 1))
    bound = negative_bound(recon, weight * kl, settings.recon_weight)
    if settings.n_grid == 0:
        return bound
    nll = stratified_nll(model, x.flatten(1), settings.n_grid, rng, settings.precision)
    return (bound + nll.mean()) / 2


def encoder_pace(logvar: Tensor, settings: Settings) -> float:
    """The encoder's learning rate over that of the rest: from 0 to 1, by its logvar (B, L).

    Codes should move by less than their posteriors' deviation in a step, or the decoder loses them:
    the loss jumps. So the narrower the posteriors, the slower the encoder.
    """
    if settings.slow_encoder == 0:
        return 1.0
    std = torch.exp(0.5 * logvar.detach().mean())  # the geometric mean
    device.average_over_processes([std])
    return min(1.0, std.item() / settings.slow_encoder)


def validate(model: VAE, images: Tensor, settings: Settings) -> dict[str, float]:
    """The same means, on images (N, 1, 28, 28) uint8 that training does not see."""
    q = posteriors(model, images, settings.precision)
    eps = posterior_noise(*q.mu.shape)
    terms = elbo_terms(model, images, q, eps, settings.precision)
    recon = terms.recon if settings.recon_loss == "bce" else terms.squared_error
    return figures("val", *(term.mean().item() for term in (recon, terms.kl, terms.recon)))


def figures(split: str, recon: float, kl: float, nll: float) -> dict[str, float]:
    """Means over images as they are printed: recon_loss a mean over pixels too, then nats."""
    values = (recon / N_PIXELS, kl, nll + kl)
    return {f"{split}_{name}": value for name, value in zip(FIGURES, values, strict=True)}


def check_finite(loss: float, moment: str, lr: float) -> None:
    """Raises UserError; the checkpoints on disk are older and good."""
    if not math.isfinite(loss):
        raise UserError(
            f"the loss is not finite at {moment} (learning rate {lr:.3g}); the checkpoints of the "
            f"epochs before are intact, start again with a smaller --lr."
        )


def build(
    config: VAEConfig, settings: Settings, images: Tensor, checkpoint: dict | None
) -> tuple[VAE, AdamW, list[dict]]:
    """Model, optimizer and a row of metrics for each epoch so far. Raises UserError."""
    torch.manual_seed(settings.seed)
    model = VAE(config, mean_image=images.float().mean(dim=0).cpu() / 255).to(images.device)
    checkpoint = checkpoint or {"metrics": []}
    if "weights" in checkpoint:
        model.load_state_dict(checkpoint["weights"])
    encoder = model.encoder.parameters()
    optimizer = AdamW(model.parameters(), encoder, settings.weight_decay)  # averages begin here
    if "training" in checkpoint:
        try:
            with optimizer.averaged():
                optimizer.load_state_dict(checkpoint["training"]["optimizer"])
        except Exception as error:  # whatever a foreign or hostile file provokes
            raise UserError("the optimizer's state is broken; start a new run.") from error
    return model, optimizer, checkpoint["metrics"]


def train(args: Namespace, config: VAEConfig, settings: Settings, checkpoint: dict | None) -> None:
    """Every epoch that the checkpoint does not hold yet. Raises UserError."""
    rank, _ = device.rank_and_world_size()
    images, _ = load_mnist(args.data_dir, "train", settings.dataset)
    images = images[: settings.n_train].to(args.device)
    val_images, _ = load_mnist(args.data_dir, "val", settings.dataset)
    val_images = fixed_binarization(val_images, settings.binarize).to(args.device)
    model, optimizer, metrics = build(config, settings, images, checkpoint)
    if rank == 0:
        n_parameters = sum(p.numel() for p in model.parameters())
        print(
            f"{config.arch}, {n_parameters:,} parameters, latent_dim {config.latent_dim}, "
            f"{args.device}, {settings.precision}; writing to {args.save_dir}"
        )
        with optimizer.averaged():
            save_checkpoint(args.save_dir / "last.pth", model, asdict(settings), metrics, optimizer)

    for epoch in range(len(metrics) + 1, settings.n_epochs + 1):
        start = time.perf_counter()
        row = {"epoch": epoch} | train_one_epoch(model, optimizer, images, settings, epoch)
        seconds = round(time.perf_counter() - start, 3)
        weights = sum(p.sum().item() for p in model.parameters())  # nan if the last step broke them
        with optimizer.averaged():
            row |= validate(model, val_images, settings)
            row |= {"lr": optimizer.lr, "seconds": seconds}
            objective = settings.objective(row)
            check_finite(objective + weights, f"epoch {epoch}, validation", optimizer.lr)
            metrics.append(row)
            if rank == 0:
                finish_epoch(model, optimizer, metrics, settings, args.save_dir)

    if rank == 0:
        best = settings.best(metrics)
        print(f"best epoch {best['epoch']}: {describe(best, 'val')}")
        print(f"next: python3 evaluate.py --model_params {args.save_dir / 'best.pth'}")


def finish_epoch(
    model: VAE, optimizer: AdamW, metrics: list[dict], settings: Settings, save_dir: Path
) -> None:
    """Writes all files of the run and prints a line about the last row of `metrics`.

    last.pth comes last: until it stands, a resumed run repeats the epoch and writes them anew.
    """
    row, args = metrics[-1], asdict(settings)
    samples = model.sample(N_SAMPLES, device.rng(settings.seed, device=model.device))
    save_grid(samples, 10, save_dir / "samples" / f"epoch_{row['epoch']:04d}.png")
    is_best = row is settings.best(metrics)
    if is_best:
        save_checkpoint(save_dir / "best.pth", model, args, metrics)
    write_csv(save_dir / "metrics.csv", metrics)
    save_checkpoint(save_dir / "last.pth", model, args, metrics, optimizer)
    speed = f"{row['seconds']:.1f} s, {settings.n_train / row['seconds']:,.0f} images/s"
    parts = [f"epoch {row['epoch']:{len(str(settings.n_epochs))}}/{settings.n_epochs}"]
    parts += [describe(row, "train"), describe(row, "val"), speed] + ["best"] * is_best
    print(" | ".join(parts), flush=True)
    if row["train_kld_loss"] < COLLAPSED_KL:
        print(
            "warning: the posterior has collapsed: z is unused; try --kl_warmup 100"
            " or a larger --recon_weight."
        )


def describe(row: dict, split: str) -> str:
    """One half of a printed line."""
    recon, kl, neg_elbo = (row[f"{split}_{name}"] for name in FIGURES)
    return f"{split} recon_loss {recon:.4f}, kld_loss {kl:.4f}, -ELBO {neg_elbo:.2f} nats"


def main() -> None:
    args, config, settings, checkpoint = read_flags()
    with (
        device.process_group(args.device, settings.batch_size, settings.n_train) as rank,
        locked_folder(args.save_dir) if rank == 0 else nullcontext(),
    ):
        try:
            train(args, config, settings, checkpoint)
        except KeyboardInterrupt:
            last_path = args.save_dir / "last.pth"
            if rank == 0 and last_path.exists():
                print(f"\nstopped; go on with: python3 train.py --resume {last_path}")
            raise


if __name__ == "__main__":
    cli.run(main)
