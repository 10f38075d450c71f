"""The paper's figure 2 on MNIST: the lower bound against training samples, for five sizes of z.

    python3 papers/auto_encoding_variational_bayes/figure_2.py --n_samples 2000000

The paper's own network: one hidden layer of 500 tanh units, a Bernoulli decoder, minibatches of
100 (Section 5). What differs: AdamW with warm-up and cosine decay in place of Adagrad, weights
initialised as PyTorch does, and the pixels drawn anew as Bernoulli(x) for each batch; the paper
does not state its binarisation.
"""

import os
import signal
import sys
import time
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from utils import cli
from utils.checkpoint import locked_folder, write_csv
from utils.device import pick_device, pick_precision
from utils.flags import Settings

import torch
from torch import Tensor, nn

from data import SPLITS, fixed_binarization, load_mnist
from loss import N_PIXELS
from model import VAE, VAEConfig
from optimizer import AdamW
from train import train_one_epoch, validate
from vis.common import DIGIT_COLOURS, plt, save_figure

HIDDEN, BATCH_SIZE, N_TRAIN = 500, 100, SPLITS["train"][1].stop
PAPER_SAMPLES = 2.5e8
# In nats for each size of z, at the last of these samples, read off the paper's curves.
PAPER_TEST_ELBO = {3: -133.5, 5: -118.7, 10: -103.4, 20: -99.4, 200: -99.6}
COLUMNS = ("latent_dim", "n_samples", "train_elbo", "test_elbo")


def paper_model(latent_dim: int, mean_image: Tensor) -> VAE:
    """Our VAE with the paper's two networks (Appendix C) in it."""
    model = VAE(VAEConfig(latent_dim=latent_dim), mean_image)
    model.encoder = nn.Sequential(
        nn.Flatten(), nn.Linear(N_PIXELS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 2 * latent_dim)
    )
    model.decoder = nn.Sequential(
        nn.Linear(latent_dim, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, N_PIXELS, bias=False)
    )
    return model


def train_curve(
    latent_dim: int, settings: Settings, data_dir: Path, device: torch.device
) -> list[dict]:
    """Trains a model; a row of COLUMNS after about ten epochs in each factor of ten."""
    images = load_mnist(data_dir, "train")[0].to(device)
    test_images = fixed_binarization(load_mnist(data_dir, "test")[0], settings.binarize).to(device)
    torch.manual_seed(settings.seed)
    mean_image = images.float().mean(dim=0).cpu() / 255
    model = paper_model(latent_dim, mean_image).to(device)
    optimizer = AdamW(model.parameters())
    measured = {round(10 ** (i / 10)) for i in range(60)} | {settings.n_epochs}
    rows = []
    for epoch in range(1, settings.n_epochs + 1):
        trained = train_one_epoch(model, optimizer, images, settings, epoch)
        if epoch in measured:
            tested = validate(model, test_images, replace(settings, precision="fp32"))
            row = (latent_dim, epoch * N_TRAIN, -trained["train_neg_elbo"], -tested["val_neg_elbo"])
            rows.append(dict(zip(COLUMNS, row, strict=True)))
    return rows


def start_worker() -> None:
    """Gives each process one thread: small networks side by side keep the cores busier."""
    torch.set_num_threads(1)
    # Five progress bars would write over each other.
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    # Ctrl-C is for the parent, which then stops its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def main() -> None:
    parser = cli.parser("Reproduces figure 2 of the paper on MNIST.")
    add, samples = parser.add_argument, cli.integer(N_TRAIN, 10**9)
    add("--n_samples", type=samples, default=2_000_000, help="for each size of z")
    add("--lr", type=cli.number(1e-6, 1), default=1e-3, help="peak learning rate of AdamW")
    add("--save_dir", type=Path, default=Path("figures"), help="folder for figure_2.csv and .png")
    cli.add_common_flags(parser, batch_size=BATCH_SIZE)
    args = parser.parse_args()
    device = pick_device(args.device)
    settings = Settings(
        seed=args.seed,
        binarize="dynamic",
        n_epochs=args.n_samples // N_TRAIN,
        batch_size=args.batch_size,
        lr=args.lr,
        recon_weight=float(N_PIXELS),  # the exact ELBO
        precision=pick_precision(args.precision, device),
    )
    curve_of = partial(train_curve, settings=settings, data_dir=args.data_dir, device=device)

    sizes = list(PAPER_TEST_ELBO)
    rows, start = [], time.perf_counter()
    with (
        locked_folder(args.save_dir),  # fails now, not after the work
        get_context("spawn").Pool(len(sizes), start_worker) as workers,
    ):
        for curve in workers.imap(curve_of, sizes):
            rows += curve
            last = curve[-1]
            print(
                f"Nz {last['latent_dim']:3}: train {last['train_elbo']:.1f}, "
                f"test {last['test_elbo']:.1f} nats after {last['n_samples']:,} samples; "
                f"the paper {PAPER_TEST_ELBO[last['latent_dim']]} after {PAPER_SAMPLES:.1e}; "
                f"{time.perf_counter() - start:.0f} s",
                flush=True,
            )
        workers.close()
        workers.join()  # their end is quieter than what the pool does to them
        write_csv(args.save_dir / "figure_2.csv", rows)
        draw(rows, args.save_dir)


def draw(rows: list[dict], save_dir: Path) -> None:
    """Writes figure_2.png. Raises UserError."""
    figure, axes = plt.subplots(figsize=(8, 5.5))
    for colour, (latent_dim, paper) in zip(DIGIT_COLOURS, PAPER_TEST_ELBO.items(), strict=False):
        curve = [row for row in rows if row["latent_dim"] == latent_dim]
        samples, trained, tested = ([row[name] for row in curve] for name in COLUMNS[1:])
        axes.plot(samples, trained, ":", color=colour)
        axes.plot(samples, tested, "-", color=colour, label=f"$N_z$ = {latent_dim}")
        axes.plot(PAPER_SAMPLES, paper, "*", color=colour, markersize=11, markeredgecolor="white")
    for style, label in ((":", "training"), ("-", "test"), ("*", "the paper's test\nat its end")):
        axes.plot([], [], style, color="gray", markersize=11, markeredgecolor="white", label=label)
    axes.set(
        xscale="log",
        ylim=(-155, -85),
        xlabel="training samples evaluated",
        ylabel="ELBO (nats per image)",
    )
    axes.set_title("MNIST: the lower bound as in AEVB figure 2")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    save_figure(figure, save_dir, "figure_2")


if __name__ == "__main__":
    cli.run(main)
