"""How fast training is: our loop beside the conventional one, and beside this machine's own matrix product.

    python3 benchmarks/throughput.py

Three networks, batch 128. The conventional loop is that of most public repositories: DataLoader, PIL and ToTensor for each
image, float32, unfused Adam, `.item()` at each step. Both loops train the same network, in turns, and medians are compared.
"""

import json
import math
import platform
import shutil
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Subset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import datasets, transforms

import cli
from data import load_mnist
from model import N_PIXELS, VAE, WIDTHS, Linear, VAEConfig
from train import make_parser, train_one_epoch

BATCH_SIZE = 128


def small_network() -> VAE:
    """784-400-20-400-784 with ReLU, the network of pytorch/examples."""
    model = VAE(VAEConfig(latent_dim=20))
    model.encoder = nn.Sequential(nn.Flatten(), Linear(N_PIXELS, 400), nn.ReLU(), Linear(400, 40))
    model.decoder = nn.Sequential(Linear(20, 400), nn.ReLU(), Linear(400, N_PIXELS, bias=False))
    return model


NETWORKS = {
    "784-400-20-400-784": small_network,
    "mlp": lambda: VAE(VAEConfig("mlp", width=WIDTHS["mlp"])),
    "conv": lambda: VAE(VAEConfig("conv", width=WIDTHS["conv"])),
}

KINDS = {  # of operators, by how their names begin
    "matrix products": ("aten::mm", "aten::addmm", "aten::mkldnn_convolution", "aten::convolution_backward"),
    "casts and copies": ("aten::copy_", "aten::_to_copy"),
    "AdamW": ("aten::_fused_adamw_", "Optimizer"),
}


def our_epoch(model: VAE, images: torch.Tensor, args: Namespace) -> float:
    """Seconds of train.py's own loop over the images."""
    args = Namespace(**vars(args) | {"latent_dim": model.config.latent_dim})
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, fused=True)
    start = time.perf_counter()
    train_one_epoch(model, model, optimizer, images, args, epoch=1)
    return time.perf_counter() - start


def conventional_epoch(model: VAE, loader: DataLoader) -> float:
    """Seconds of the loop that most public repositories have."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.train()
    start, total = time.perf_counter(), 0.0
    for x, _ in loader:
        optimizer.zero_grad()
        logits, mu, logvar = model(x)
        bce = F.binary_cross_entropy(torch.sigmoid(logits), x, reduction="sum")
        loss = bce - 0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
        loss.backward()
        total += loss.item()
        optimizer.step()
    return time.perf_counter() - start


def profile(model: VAE, images: torch.Tensor, args: Namespace) -> dict[str, float]:
    """Where the milliseconds of a step of our loop go inside PyTorch's operators, by torch.profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        our_epoch(model, images, args)
    milliseconds = dict.fromkeys((*KINDS, "rest"), 0.0)
    for event in profiler.key_averages():
        kind = next((kind for kind, names in KINDS.items() if event.key.startswith(names)), "rest")
        milliseconds[kind] += event.self_cpu_time_total / 1e3 / math.ceil(len(images) / args.batch_size)
    return milliseconds


def matrix_peak(precision: str) -> float:
    """GFLOP/s of the fastest of a few plain matrix products."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    best = 0.0
    for n in (512, 1024, 2048):
        a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
        for _ in range(8):
            start = time.perf_counter()
            a @ b
            best = max(best, 2 * n**3 / (time.perf_counter() - start) / 1e9)
    return best


def flops_of_an_image(model: VAE) -> float:
    """Multiplications and additions of forward and backward, counted by PyTorch."""
    with FlopCounterMode(display=False) as counter:
        logits, mu, logvar = model(torch.rand(BATCH_SIZE, 1, 28, 28))
        (logits.sum() + mu.sum() + logvar.sum()).backward()
    return counter.get_total_flops() / BATCH_SIZE


def main() -> None:
    parser = cli.parser("Measures training throughput beside the conventional loop and the matrix peak.")
    parser.add_argument("--n_images", type=cli.integer(BATCH_SIZE, 50_000), default=6_400, help="a measurement")
    parser.add_argument("--n_rounds", type=cli.integer(1, 100), default=5, help="measurements of each loop, in turns")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    cli.add_common_flags(parser, batch_size=BATCH_SIZE)
    args = parser.parse_args()
    args.device = torch.device("cpu")
    args.precision = cli.pick_precision(args.precision, args.device)
    args = Namespace(**vars(make_parser().parse_args([])) | vars(args) | {"n_epochs": 1, "recon_weight": float(N_PIXELS)})

    images, _ = load_mnist(args.data_dir, "train")
    images = images[: args.n_images]
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(args.data_dir / "MNIST", Path(folder) / "MNIST")  # torchvision extracts beside the archives
        dataset = datasets.MNIST(folder, transform=transforms.ToTensor(), download=True)
        loader = DataLoader(Subset(dataset, range(args.n_images)), batch_size=args.batch_size, shuffle=True)
        for name, build in NETWORKS.items():
            torch.manual_seed(args.seed)
            model = build()
            our_epoch(model, images[: 10 * BATCH_SIZE], args)  # warm-up
            ours, theirs, peaks = [], [], []
            for _ in range(args.n_rounds):
                ours.append(args.n_images / our_epoch(model, images, args))
                theirs.append(args.n_images / conventional_epoch(model, loader))
                peaks.append(matrix_peak(args.precision))
            flops, rate, peak = flops_of_an_image(model), statistics.median(ours), max(peaks)
            results[name] = {
                "images_per_second": rate,
                "images_per_second_range": [min(ours), max(ours)],
                "conventional_images_per_second": statistics.median(theirs),
                "conventional_range": [min(theirs), max(theirs)],
                "times_conventional": rate / statistics.median(theirs),
                "gflops": rate * flops / 1e9,
                "matrix_peak_gflops": peak,
                "share_of_peak": rate * flops / 1e9 / peak,
                "milliseconds_of_a_step": profile(model, images, args),
            }
    about = {"precision": args.precision, "threads": torch.get_num_threads(), "machine": platform.machine()}
    about |= {"torch": torch.__version__, "rounds": args.n_rounds, "images": args.n_images}
    if args.json:
        print(json.dumps(about | {"networks": results}))
        return
    print(", ".join(f"{key} {value}" for key, value in about.items()) + "\n")
    print("| network | images/s (range) | conventional loop (range) | times | GFLOP/s | matrix peak | share |")
    print("|---|---|---|---|---|---|---|")
    for name, r in results.items():
        (low, high), (their_low, their_high) = r["images_per_second_range"], r["conventional_range"]
        print(
            f"| {name} | {r['images_per_second']:,.0f} ({low:,.0f} to {high:,.0f}) "
            f"| {r['conventional_images_per_second']:,.0f} ({their_low:,.0f} to {their_high:,.0f}) "
            f"| {r['times_conventional']:.1f} | {r['gflops']:.0f} | {r['matrix_peak_gflops']:.0f} | {r['share_of_peak']:.0%} |"
        )
    print("\n| milliseconds of a step, profiled | " + " | ".join((*KINDS, "rest")) + " |\n|---|---|---|---|---|")
    for name, r in results.items():
        print(f"| {name} | " + " | ".join(f"{ms:.2f}" for ms in r["milliseconds_of_a_step"].values()) + " |")


if __name__ == "__main__":
    cli.run(main)
