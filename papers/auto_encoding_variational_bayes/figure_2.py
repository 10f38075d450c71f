"""The paper's figure 2 on MNIST: the lower bound against the number of training samples, for five sizes of z.

    python3 papers/auto_encoding_variational_bayes/figure_2.py --n_samples 2000000 --save_dir figures

The paper's own network: one hidden layer of 500 tanh units, a Bernoulli decoder, minibatches of 100 (Section 5).
What differs: AdamW with warm-up and cosine decay in place of Adagrad, weights initialised as PyTorch does, and the pixels
drawn anew as Bernoulli(x) for each batch; the paper does not state its binarisation.
"""

import os
import signal
import sys
import time
from argparse import Namespace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch
from torch import nn

import cli
from checkpoint import locked_folder, write_csv
from data import fixed_binarization, load_mnist
from model import N_PIXELS, VAE, Linear, VAEConfig
from train import held_out_figures, make_parser, train_one_epoch
from vis.common import DIGIT_COLOURS, plt, save_figure

HIDDEN, BATCH_SIZE, N_TRAIN = 500, 100, 50_000
PAPER_SAMPLES = 2.5e8
PAPER_TEST_ELBO = {3: -133.5, 5: -118.7, 10: -103.4, 20: -99.4, 200: -99.6}  # at its last sample, read off its curves
COLUMNS = ("latent_dim", "n_samples", "train_elbo", "test_elbo")


def paper_model(latent_dim: int, mean_image: torch.Tensor) -> VAE:
    """Our VAE with the paper's two networks (Appendix C) in it."""
    model = VAE(VAEConfig(latent_dim=latent_dim), mean_image)
    model.encoder = nn.Sequential(nn.Flatten(), Linear(N_PIXELS, HIDDEN), nn.Tanh(), Linear(HIDDEN, 2 * latent_dim))
    model.decoder = nn.Sequential(Linear(latent_dim, HIDDEN), nn.Tanh(), Linear(HIDDEN, N_PIXELS, bias=False))
    return model


def train_curve(latent_dim: int, args: Namespace) -> list[dict]:
    """Trains for args.n_epochs; a row of COLUMNS after about ten epochs in each factor of ten."""
    args = Namespace(**vars(args) | {"latent_dim": latent_dim})
    images, _ = load_mnist(args.data_dir, "train")
    test_images = fixed_binarization(load_mnist(args.data_dir, "test")[0], args.binarize)
    torch.manual_seed(args.seed)
    model = paper_model(latent_dim, images.float().mean(dim=0) / 255).to(args.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, fused=True)
    measured = {round(10 ** (i / 10)) for i in range(60)} | {args.n_epochs}
    rows = []
    for epoch in range(1, args.n_epochs + 1):
        trained = train_one_epoch(model, model, optimizer, images, args, epoch)
        if epoch in measured:
            test = held_out_figures(model, test_images, args, "fp32")
            row = (latent_dim, epoch * N_TRAIN, -trained["neg_elbo"], -test["neg_elbo"])
            rows.append(dict(zip(COLUMNS, row, strict=True)))
    return rows


def start_worker() -> None:
    """One thread for each process: small networks side by side keep the cores busier than one of them on all cores."""
    torch.set_num_threads(1)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - five progress bars would write over each other
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then stops its workers


def main() -> None:
    parser = cli.parser("Reproduces figure 2 of the paper on MNIST.")
    parser.add_argument("--n_samples", type=cli.integer(N_TRAIN, 10**9), default=2_000_000, help="for each size of z")
    parser.add_argument("--lr", type=cli.number(1e-6, 1), default=1e-3, help="peak learning rate of AdamW")
    parser.add_argument("--save_dir", type=Path, default=Path("figures"), help="folder for figure_2.csv and figure_2.png")
    cli.add_common_flags(parser, batch_size=BATCH_SIZE)
    args = parser.parse_args()
    args = Namespace(**vars(make_parser().parse_args([])) | vars(args))
    args.device = cli.pick_device(args.device)
    args.precision = cli.pick_precision(args.precision, args.device)
    args.n_epochs = args.n_samples // N_TRAIN
    args.binarize, args.recon_loss, args.recon_weight = "dynamic", "bce", float(N_PIXELS)  # the exact ELBO

    sizes = list(PAPER_TEST_ELBO)
    rows, start = [], time.perf_counter()
    with (
        locked_folder(args.save_dir),  # fails now, not after the work
        get_context("spawn").Pool(len(sizes), start_worker) as workers,
    ):
        for curve in workers.imap(partial(train_curve, args=args), sizes):
            rows += curve
            last = curve[-1]
            print(
                f"Nz {last['latent_dim']:3}: train {last['train_elbo']:.1f}, test {last['test_elbo']:.1f} nats after "
                f"{last['n_samples']:,} samples; the paper {PAPER_TEST_ELBO[last['latent_dim']]} after {PAPER_SAMPLES:.1e}; "
                f"{time.perf_counter() - start:.0f} s",
                flush=True,
            )
        workers.close()
        workers.join()  # their end is quieter than what the pool does to them
        write_csv(args.save_dir / "figure_2.csv", rows)
        draw(rows, args.save_dir)


def draw(rows: list[dict], save_dir: Path) -> None:
    figure, axes = plt.subplots(figsize=(8, 5.5))
    for colour, (latent_dim, paper) in zip(DIGIT_COLOURS, PAPER_TEST_ELBO.items(), strict=False):
        curve = [row for row in rows if row["latent_dim"] == latent_dim]
        samples = [row["n_samples"] for row in curve]
        axes.plot(samples, [row["train_elbo"] for row in curve], ":", color=colour)
        axes.plot(samples, [row["test_elbo"] for row in curve], "-", color=colour, label=f"$N_z$ = {latent_dim}")
        axes.plot(PAPER_SAMPLES, paper, "*", color=colour, markersize=11, markeredgecolor="white")
    for style, label in ((":", "training"), ("-", "test"), ("*", "the paper's test\nat its end")):
        axes.plot([], [], style, color="gray", markersize=11, markeredgecolor="white", label=label)
    axes.set(xscale="log", ylim=(-155, -85), xlabel="training samples evaluated", ylabel="ELBO (nats per image)")
    axes.set_title("MNIST: the lower bound as in AEVB figure 2")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    save_figure(figure, save_dir, "figure_2")


if __name__ == "__main__":
    cli.run(main)
