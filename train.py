"""Trains a VAE: flags -> data -> epochs -> checkpoints -> test figures. Owns the loop and what it minimises.

python3 train.py
python3 train.py --resume runs/MNIST_mlp_2d/last.pth
torchrun --nproc_per_node=2 train.py
"""

import math
import time
from argparse import ArgumentParser, Namespace
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import AdamW
from tqdm import tqdm

import cli
from checkpoint import load_checkpoint, locked_folder, save_checkpoint, write_csv
from data import BINARIZE, DATASETS, batches, fixed_binarization, load_mnist
from errors import UserError
from evaluate import elbo_terms, posterior_noise
from loss import bernoulli_nll, gaussian_log_prob, log_mean_exp, squared_error
from model import ARCHS, MAX_BLOCKS, MAX_LATENT_DIM, MAX_WIDTH, N_PIXELS, PRIORS, VAE, WIDTHS, VAEConfig
from picture import save_grid

WARMUP_STEPS = 500
MAX_GRADIENT_NORM = 1000.0  # several times its usual size: shortens only the rare step that would wreck a run
COLLAPSED_KLD = 0.1  # nats per image: below this, z says almost nothing about x
MAX_IW_SAMPLES = 100  # K of --n_iw_samples
STEPS_PER_READ = 20  # between two reads of the loss: a GPU runs ahead meanwhile
N_SAMPLES = 100  # of the prior, drawn after each epoch
NOT_OF_THE_RUN = ("data_dir", "save_dir", "device", "resume", "init_from")  # flags that a checkpoint does not carry


def make_parser() -> ArgumentParser:
    parser = cli.parser("Trains a VAE on MNIST: loss = recon_weight * recon_loss + kld_loss.")
    cli.add_common_flags(parser, batch_size=128)
    integer, number = cli.integer, cli.number
    parser.add_argument("--dataset", choices=DATASETS, default="MNIST", help="torchvision's name")
    parser.add_argument("--binarize", choices=BINARIZE, default="none", help="grey pixels, x' ~ Bernoulli(x), or x > 0.5")
    parser.add_argument("--n_train", type=integer(1, 50_000), default=50_000, help="train on the first so many images")
    parser.add_argument("--arch", choices=ARCHS, default=VAEConfig.arch, help="residual layers or residual convolutions")
    parser.add_argument("--latent_dim", type=integer(1, MAX_LATENT_DIM), default=VAEConfig.latent_dim, help="size of z")
    parser.add_argument("--width", type=integer(1, MAX_WIDTH), help=f"hidden units or channels; by --arch: {WIDTHS}")
    parser.add_argument("--n_blocks", type=integer(1, MAX_BLOCKS), default=VAEConfig.n_blocks, help="residual blocks")
    parser.add_argument("--prior", choices=PRIORS, default=VAEConfig.prior, help="standard normal, or a RealNVP flow")
    parser.add_argument("--recon_loss", choices=("bce", "mse"), default="bce", help="a mean over pixels and images")
    parser.add_argument("--recon_weight", type=number(1e-6, 1e6), default=600.0, help="with bce, 784 / beta; 784 is -ELBO")
    parser.add_argument("--n_iw_samples", type=integer(1, MAX_IW_SAMPLES), default=1, metavar="K", help="of the bound; 1: ELBO")
    parser.add_argument("--n_epochs", type=integer(1, 1_000_000), default=16, help="epochs in all, resumed ones included")
    parser.add_argument("--lr", type=number(1e-12, 1e3), default=1e-3, help="peak: after a warm-up, falls to 0 as a cosine")
    parser.add_argument("--compile", action="store_true", help="run the network through torch.compile")
    parser.add_argument("--save_dir", type=Path, default=None, help="folder of the run; default: a new one in ./runs")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--init_from", type=Path, default=None, metavar="PTH", help="start a new run from these weights")
    start.add_argument("--resume", type=Path, default=None, metavar="LAST_PTH", help="go on with an interrupted run")
    return parser


def read_flags() -> tuple[Namespace, dict | None]:
    """The flags, and the checkpoint to start from. One to resume stands in for the flags' defaults. Raises UserError."""
    parser = make_parser()
    args, checkpoint = parser.parse_args(), None
    if args.resume:
        _, checkpoint = load_checkpoint(args.resume)
        if "training" not in checkpoint:
            raise UserError(f"{args.resume} holds no state to go on from; give the last.pth of the run.")
        saved = vars(parser.parse_args([])) | checkpoint["args"]  # a flag that is younger than the run had its default
        saved = {name: value for name, value in saved.items() if name not in NOT_OF_THE_RUN}
        if any(name not in args or type(saved[name]) not in (int, type(parser.get_default(name))) for name in saved):
            raise UserError(f"{args.resume} holds flags that are not of this version of train.py; start a new run.")
        args = parser.parse_args(namespace=Namespace(**saved))
    args.device = cli.pick_device(args.device)
    args.precision = cli.pick_precision(args.precision, args.device)
    if args.resume:
        for name in saved:
            may_grow = name == "n_epochs" and args.n_epochs >= saved[name]
            if getattr(args, name) != saved[name] and not may_grow:
                raise UserError(
                    f"--{name} is {getattr(args, name)} but the run to resume has {saved[name]}; leave the flag out."
                )
        if args.save_dir and args.save_dir.resolve() != args.resume.parent.resolve():
            raise UserError(f"--save_dir is {args.save_dir} but the run is in {args.resume.parent}; leave the flag out.")
        args.save_dir = args.resume.parent
        if checkpoint["metrics"] and not (args.save_dir / "best.pth").exists():
            raise UserError(f"{args.save_dir} holds no best.pth; put that of the run beside {args.resume}.")
    args.width = args.width or WIDTHS[args.arch]
    config = read_config(args)
    if args.init_from:
        model, checkpoint = load_checkpoint(args.init_from)
        for name, value in vars(model.config).items():
            if value != getattr(config, name):
                raise UserError(f"--{name} is {getattr(config, name)} but {args.init_from} has {value}; give that.")
    args.save_dir = args.save_dir or new_folder(args)
    if not args.resume and any((args.save_dir / name).exists() for name in ("last.pth", "best.pth", "metrics.csv")):
        raise UserError(
            f"{args.save_dir} holds a run already; add --resume {args.save_dir / 'last.pth'} or choose another --save_dir."
        )
    return args, checkpoint


def read_config(args: Namespace) -> VAEConfig:
    """The model that the flags describe. Raises UserError."""
    try:
        return VAEConfig(**{field.name: getattr(args, field.name) for field in fields(VAEConfig)})
    except ValueError as error:
        raise UserError(f"{error}; change the flags.") from error


def new_folder(args: Namespace) -> Path:
    """The first name that is free of runs/MNIST_mlp_2d, runs/MNIST_mlp_2d_2, ..."""
    name, n = f"{args.dataset}_{args.arch}_{args.latent_dim}d", 1
    while (folder := Path("runs") / (name if n == 1 else f"{name}_{n}")).exists():
        n += 1
    return folder


def learning_rate(step: int, n_steps: int, peak: float) -> float:
    """Of step 0 to n_steps - 1: a linear warm-up, then half a cosine down to 0."""
    warmup = min(1.0, (step + 1) / min(WARMUP_STEPS, n_steps))
    return peak * warmup * 0.5 * (1 + math.cos(math.pi * step / n_steps))


def train_one_epoch(model: VAE, forward, optimizer: AdamW, images: Tensor, args: Namespace, epoch: int) -> dict[str, float]:
    """One pass over `images` (N, 1, 28, 28) uint8 in a new order; returns the epoch's means over its images.

    `forward` is the model, or what DistributedDataParallel or torch.compile made of it.

    All randomness is a function of (seed, epoch, rank), so a resumed run repeats an epoch bit for bit.
    Raises UserError if the loss is not finite.
    """
    rank, world_size = cli.rank_and_world_size()
    order = torch.randperm(len(images), generator=cli.rng(args.seed, epoch))
    order = order[: len(order) // world_size * world_size][rank::world_size]  # an equal share for each process
    share = order.split(args.batch_size // world_size)
    pixel_rng = cli.rng(args.seed, epoch, rank, 1)
    noise_rng = cli.rng(args.seed, epoch, rank, 2, device=args.device)
    parameters = optimizer.param_groups[0]["params"]
    history = torch.zeros(len(share), 4, device=args.device)  # sums over each step's images; the loss for `stop_at_divergence`
    forward.train()
    bar = tqdm(total=len(share), desc=f"epoch {epoch}/{args.n_epochs}", leave=False, unit="batch", disable=rank > 0 or None)

    for step, x in enumerate(batches(images, share, args.device, args.binarize, pixel_rng)):  # x (B, 1, 28, 28)
        lr = learning_rate((epoch - 1) * len(share) + step, args.n_epochs * len(share), args.lr)
        optimizer.param_groups[0]["lr"] = lr
        eps = torch.randn(args.n_iw_samples, len(x), args.latent_dim, generator=noise_rng, device=args.device)  # (K, B, L)

        with cli.autocast(args.precision, args.device):
            logits, mu, logvar = forward(x, eps)  # (K, B, 1, 28, 28), (B, L), (B, L)
        nll = bernoulli_nll(logits, x)  # (K, B)
        recon = nll if args.recon_loss == "bce" else squared_error(logits, x)  # (K, B)
        kl, loss = kl_and_loss(model, recon, mu, logvar, model.reparameterize(mu, logvar, eps), args.recon_weight)

        optimizer.zero_grad()
        loss.backward()
        norm = get_total_norm([p.grad for p in parameters])
        if norm > MAX_GRADIENT_NORM:
            clip_grads_with_norm_(parameters, MAX_GRADIENT_NORM, norm)
        optimizer.step()

        history[step] = torch.stack((recon.mean(), kl.mean(), nll.mean(), loss)).detach() * len(x)
        if (step + 1) % STEPS_PER_READ == 0 or step + 1 == len(share):
            stop_at_divergence(history[: step + 1], epoch, lr)
            bar.set_postfix_str(f"loss {loss.item():.2f}", refresh=False)
            bar.update(step + 1 - bar.n)
    bar.close()
    sums = cli.sum_over_processes(history.cpu().double().sum(dim=0))
    recon, kl, nll, _ = (sums / (len(order) * world_size)).tolist()
    return {"recon_loss": recon / N_PIXELS, "kld_loss": kl, "neg_elbo": nll + kl}


def kl_and_loss(model: VAE, recon: Tensor, mu: Tensor, logvar: Tensor, z: Tensor, recon_weight: float) -> tuple[Tensor, Tensor]:
    """KL(q(z|x) || p(z)) in nats, and the loss of a batch (): recon (K, B), mu and logvar (B, L), z (K, B, L) ~ q(z|x).

    With K = 1 the loss is recon_weight * recon / 784 + KL: the paper's, weighted (eq. 7). With more draws it is the
    importance-weighted bound of Burda et al. 2016 (eq. 8), negated, with recon_weight * recon / 784 for -log p(x|z).
    """
    recon = recon_weight / N_PIXELS * recon
    kl = model.prior.kl(mu, logvar, z)  # (B,) in closed form, or (K, B)
    if len(z) == 1:
        return kl, recon.mean() + kl.mean()
    log_w = model.prior.log_prob(z) - gaussian_log_prob(z, mu, logvar) - recon  # (K, B)
    return kl, -log_mean_exp(log_w.T).mean()


def stop_at_divergence(figures: Tensor, epoch: int, lr: float, moment: str = "step {}") -> None:
    """Raises UserError at the first row (a step's) that is not finite; the checkpoints on disk are older and good."""
    bad = (~torch.isfinite(figures).all(dim=1)).nonzero()
    if len(bad):
        raise UserError(
            f"the loss is not finite at epoch {epoch}, {moment.format(bad[0].item() + 1)} (learning rate {lr:.3g}); "
            f"the checkpoints of the epochs before are intact, start again with a smaller --lr."
        )


def held_out_figures(model: VAE, images: Tensor, args: Namespace, precision: str) -> dict[str, float]:
    """The same figures as `train_one_epoch`, on images (N, 1, 28, 28) uint8 that it does not see."""
    rank, world_size = cli.rank_and_world_size()
    share = slice(rank, None, world_size)
    eps = posterior_noise(len(images), args.latent_dim)
    terms = elbo_terms(model, images[share], eps[share], args.device, precision, batch_size=1000)
    sums = torch.stack([terms[name].sum() for name in ("recon", "kl", "squared_error")])
    nll, kl, squared = (cli.sum_over_processes(sums) / len(images)).tolist()
    recon = nll if args.recon_loss == "bce" else squared
    return {"recon_loss": recon / N_PIXELS, "kld_loss": kl, "neg_elbo": nll + kl}


def describe(figures: dict[str, float]) -> str:
    return "recon_loss {recon_loss:.4f}, kld_loss {kld_loss:.4f}, -ELBO {neg_elbo:.2f} nats".format(**figures)


def objective(row: dict, args: Namespace) -> float:
    """The validation loss of a row of metrics: what best.pth is the best in, unless the run lowers another bound."""
    return args.recon_weight * row["val_recon_loss"] + row["val_kld_loss"]


def train(args: Namespace, checkpoint: dict | None) -> None:
    rank, world_size = cli.rank_and_world_size()
    best_path, last_path = args.save_dir / "best.pth", args.save_dir / "last.pth"

    # Data: read once, split once, the validation images binarised once.
    images, _ = load_mnist(args.data_dir, "train", args.dataset)
    images = images[: args.n_train]
    val_images = fixed_binarization(load_mnist(args.data_dir, "val", args.dataset)[0], args.binarize)

    # Model and optimizer, new or as they were.
    torch.manual_seed(args.seed)
    model = VAE(read_config(args), mean_image=images.float().mean(dim=0) / 255).to(args.device)
    optimizer = AdamW(model.parameters(), lr=args.lr, fused=True)
    metrics = []
    if checkpoint:
        model.load_state_dict(checkpoint["weights"])
    if args.resume:
        metrics = checkpoint["metrics"]
        try:
            optimizer.load_state_dict(checkpoint["training"]["optimizer"])
            [objective(row, args) for row in metrics]
        except Exception as error:  # whatever a foreign or hostile file provokes
            raise UserError(f"{args.resume} holds no state to go on from; give the last.pth of the run.") from error
    forward = DistributedDataParallel(model) if world_size > 1 else model
    forward = torch.compile(forward) if args.compile else forward

    # What every checkpoint says of the run.
    run_flags = {k: v for k, v in vars(args).items() if k not in NOT_OF_THE_RUN}

    def save_last():
        save_checkpoint(last_path, model, run_flags, metrics, training={"optimizer": optimizer.state_dict()})

    if rank == 0:
        n_parameters = sum(p.numel() for p in model.parameters())
        print(
            f"{args.arch}, {n_parameters:,} parameters, latent_dim {args.latent_dim}, {args.device}, {args.precision}; "
            f"recon_weight {args.recon_weight:g}"
            + (f": beta = {N_PIXELS / args.recon_weight:.3f}" if args.recon_loss == "bce" else " on squared error")
            + f"; writing to {args.save_dir}"
        )
        save_last()  # so that there is something to resume, whenever the run ends

    for epoch in range(len(metrics) + 1, args.n_epochs + 1):
        start = time.perf_counter()
        trained = train_one_epoch(model, forward, optimizer, images, args, epoch)
        seconds = time.perf_counter() - start
        held_out = held_out_figures(model, val_images, args, args.precision)
        lr = optimizer.param_groups[0]["lr"]
        stop_at_divergence(torch.tensor([[*held_out.values()]]), epoch, lr, "validation")
        row = {"epoch": epoch} | {f"train_{k}": v for k, v in trained.items()} | {f"val_{k}": v for k, v in held_out.items()}
        metrics.append(row | {"lr": lr, "seconds": round(seconds, 3)})
        is_best = args.n_iw_samples > 1 or objective(row, args) <= min(objective(r, args) for r in metrics)
        if rank > 0:
            continue
        samples = model.sample(N_SAMPLES, cli.rng(args.seed, device=args.device))  # the same draws each time
        save_grid(samples, 10, args.save_dir / "samples" / f"epoch_{epoch:04d}.png")
        if is_best:
            save_checkpoint(best_path, model, run_flags, metrics)
        write_csv(args.save_dir / "metrics.csv", metrics)  # from the whole history: no row is lost or doubled
        save_last()  # after the epoch's other files: until it stands, a resumed run repeats the epoch and writes them anew
        print(
            f"epoch {epoch:{len(str(args.n_epochs))}}/{args.n_epochs} | train {describe(trained)} | val {describe(held_out)}"
            f" | {seconds:.1f} s, {len(images) / seconds:,.0f} images/s{' | best' if is_best else ''}",
            flush=True,
        )
        if trained["kld_loss"] < COLLAPSED_KLD:
            print(
                f"warning: the posterior has collapsed (KLD {trained['kld_loss']:.3f} nats): z is unused; raise --recon_weight."
            )


def print_test_figures(args: Namespace) -> None:
    """The best model's, on the test images; by one process, once the others have gone."""
    best_path = args.save_dir / "best.pth"
    best, checkpoint = load_checkpoint(best_path, args.device)
    images = fixed_binarization(load_mnist(args.data_dir, "test", args.dataset)[0], args.binarize)
    test = held_out_figures(best, images, args, args.precision)
    print(f"test, {len(images):,} images, best epoch {len(checkpoint['metrics'])}: {describe(test)}")
    print(f"wrote {best_path}, {args.save_dir / 'last.pth'}, {args.save_dir / 'metrics.csv'}, {args.save_dir / 'samples'}")


def main() -> None:
    args, checkpoint = read_flags()
    with cli.process_group(args.device, args.batch_size) as rank, locked_folder(args.save_dir) if rank == 0 else nullcontext():
        try:
            train(args, checkpoint)
        except KeyboardInterrupt:
            if rank == 0 and (args.save_dir / "last.pth").exists():
                print(f"\nstopped; go on with: python3 train.py --resume {args.save_dir / 'last.pth'}")
            raise
    if rank == 0:
        print_test_figures(args)


if __name__ == "__main__":
    cli.run(main)
