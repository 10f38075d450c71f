"""How fast training is: our loop beside the conventional one, and beside this machine's own peak.

    python3 benchmarks/throughput.py
    python3 benchmarks/throughput.py --operators

Three networks, batch 128. Both loops train the same network, in turns, and medians are compared;
the conventional loop is that of conventional.py. With --operators it says instead what a second
thread gains, operator by operator, with the default network.
"""

import json
import math
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from utils import cli
from utils.cli import UserError
from utils.device import pick_precision
from utils.flags import Settings

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from benchmarks import conventional
from benchmarks.common import describe, flops_of_an_image, machine, matrix_peak, median_and_range
from data import load_mnist
from loss import N_PIXELS
from model import VAE, VAEConfig
from optimizer import AdamW
from train import train_one_epoch

BATCH_SIZE = 128


def small_network() -> VAE:
    """784-400-20-400-784 with ReLU, the network of pytorch/examples."""
    model = VAE(VAEConfig(latent_dim=20))
    model.encoder = nn.Sequential(
        nn.Flatten(), nn.Linear(N_PIXELS, 400), nn.ReLU(), nn.Linear(400, 2 * 20)
    )
    model.decoder = nn.Sequential(
        nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, N_PIXELS, bias=False)
    )
    return model


NETWORKS = {
    "784-400-20-400-784": small_network,
    "mlp": lambda: VAE(VAEConfig("mlp")),
    "conv": lambda: VAE(VAEConfig("conv")),
}

KINDS = {  # of operators, by how their names begin
    "matrix products": (
        "aten::mm",
        "aten::addmm",
        "aten::mkldnn_convolution",
        "aten::convolution_backward",
    ),
    "casts and copies": ("aten::copy_", "aten::_to_copy"),
    "AdamW": ("aten::_fused_adamw_",),
}
N_OPERATORS = 14  # those that take longest


def our_epoch(model: VAE, images: Tensor, settings: Settings) -> float:
    """Seconds of train.py's own loop over the images."""
    optimizer = AdamW(model.parameters())
    start = time.perf_counter()
    train_one_epoch(model, optimizer, images, settings, epoch=1)
    return time.perf_counter() - start


def conventional_epoch(model: VAE, loader: DataLoader) -> float:
    """Seconds of the loop that most public repositories have."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    start = time.perf_counter()
    conventional.train_one_epoch(model, optimizer, loader)
    return time.perf_counter() - start


def profile(model: VAE, images: Tensor, settings: Settings) -> dict[str, float]:
    """The milliseconds that a step of our loop spends in each of PyTorch's operators."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        our_epoch(model, images, settings)
    n_steps = math.ceil(len(images) / settings.batch_size)
    return {e.key: e.self_cpu_time_total / 1e3 / n_steps for e in profiler.key_averages()}


def by_kind(milliseconds: dict[str, float]) -> dict[str, float]:
    """The sums of KINDS, and of the rest."""
    sums = dict.fromkeys((*KINDS, "rest"), 0.0)
    for name, value in milliseconds.items():
        kind = next((kind for kind, names in KINDS.items() if name.startswith(names)), "rest")
        sums[kind] += value
    return sums


def compare_threads(images: Tensor, settings: Settings, n_rounds: int) -> None:
    """Prints what the default network gains by all threads, operator by operator."""
    all_threads, rates, milliseconds = torch.get_num_threads(), {}, {}
    model = VAE(VAEConfig())
    for n in (1, all_threads) * (n_rounds + 1):  # the first round is for warming up
        torch.set_num_threads(n)
        rates.setdefault(n, []).append(len(images) / our_epoch(model, images, settings))
    for n in (1, all_threads):
        torch.set_num_threads(n)
        milliseconds[n] = profile(model, images, settings)
        print(f"{n} threads: {median_and_range(rates[n][1:], ',.0f')} images/s")
    one, all_ = milliseconds[1], milliseconds[all_threads]
    print(f"\n| operator | milliseconds of a step | with {all_threads} threads |\n|---|---|---|")
    for name in sorted(one, key=one.get, reverse=True)[:N_OPERATORS]:
        print(f"| {name} | {one[name]:.2f} | {all_.get(name, 0):.2f} |")
    print(f"| all | {sum(one.values()):.2f} | {sum(all_.values()):.2f} |")


def measure(
    model: VAE, images: Tensor, loader: DataLoader, settings: Settings, n_rounds: int
) -> dict:
    """Images per second of both loops over the same images, in turns, and what follows from it."""
    our_epoch(model, images[: 10 * BATCH_SIZE], settings)  # warm-up
    ours, theirs, peaks = [], [], []
    for _ in range(n_rounds):
        ours.append(len(images) / our_epoch(model, images, settings))
        theirs.append(len(images) / conventional_epoch(model, loader))
        peaks.append(matrix_peak(settings.precision))
    rate, their_rate, peak = statistics.median(ours), statistics.median(theirs), max(peaks)
    gflops = rate * flops_of_an_image(model) / 1e9
    return {
        "images_per_second": rate,
        "images_per_second_range": [min(ours), max(ours)],
        "conventional_images_per_second": their_rate,
        "conventional_range": [min(theirs), max(theirs)],
        "times_conventional": rate / their_rate,
        "gflops": gflops,
        "matrix_peak_gflops": peak,
        "share_of_peak": gflops / peak,
        "milliseconds_of_a_step": by_kind(profile(model, images, settings)),
    }


def print_tables(results: dict[str, dict]) -> None:
    theirs = "conventional loop (range)"
    print(f"| network | images/s (range) | {theirs} | times | GFLOP/s | matrix peak | share |")
    print("|---|---|---|---|---|---|---|")
    for name, r in results.items():
        (low, high), (their_low, their_high) = r["images_per_second_range"], r["conventional_range"]
        print(
            f"| {name} | {r['images_per_second']:,.0f} ({low:,.0f} to {high:,.0f}) "
            f"| {r['conventional_images_per_second']:,.0f} ({their_low:,.0f} to {their_high:,.0f}) "
            f"| {r['times_conventional']:.1f} | {r['gflops']:.0f} | {r['matrix_peak_gflops']:.0f} "
            f"| {r['share_of_peak']:.0%} |"
        )
    print(f"\n| milliseconds of a step, profiled | {' | '.join(KINDS)} | rest |")
    print("|---|---|---|---|---|")
    for name, r in results.items():
        milliseconds = [f"{value:.2f}" for value in r["milliseconds_of_a_step"].values()]
        print(f"| {name} | {' | '.join(milliseconds)} |")


def main() -> None:
    parser = cli.parser("Measures training throughput beside the conventional loop's.")
    add, images_range = parser.add_argument, cli.integer(BATCH_SIZE, 50_000)
    add("--n_images", type=images_range, default=6_400, help="a measurement")
    rounds = cli.integer(1, 100)
    add("--n_rounds", type=rounds, default=5, help="measurements of each loop, in turns")
    add("--json", action="store_true", help="print one JSON object instead of the tables")
    add("--operators", action="store_true", help="what a second thread gains, instead of all else")
    cli.add_seed_flag(parser)
    cli.add_common_flags(parser, batch_size=BATCH_SIZE)
    args = parser.parse_args()
    if args.device not in ("auto", "cpu"):
        raise UserError("throughput.py measures the CPU; leave --device out.")
    settings = Settings(
        seed=args.seed,
        n_epochs=1,
        batch_size=args.batch_size,
        recon_weight=float(N_PIXELS),
        precision=pick_precision(args.precision, torch.device("cpu")),
    )

    images = load_mnist(args.data_dir, "train")[0][: args.n_images]
    if args.operators:
        return compare_threads(images, settings, args.n_rounds)
    results = {}
    with TemporaryDirectory() as folder:
        dataset = Subset(conventional.extract_mnist(args.data_dir, folder), range(args.n_images))
        loader = DataLoader(dataset, batch_size=args.batch_size, shuffle=True)
        for name, build in NETWORKS.items():
            torch.manual_seed(args.seed)
            results[name] = measure(build(), images, loader, settings, args.n_rounds)
    facts = machine(settings.precision) | {"rounds": args.n_rounds, "images": args.n_images}
    if args.json:
        print(json.dumps(facts | {"networks": results}))
    else:
        print(describe(facts) + "\n")
        print_tables(results)


if __name__ == "__main__":
    cli.run(main)
