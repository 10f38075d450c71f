"""Interpolation in latent space from one test digit to another, one pair per row.

python3 vis/interpolation/main.py --model_params pretrained/vae_mnist.pth --n_pairs 8
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from utils import cli
from utils.cli import number
from utils.device import rng
from vis.common import EncodedTestSet, draw_grid, make_parser, save_figure


def linear(start: Tensor, end: Tensor, n_steps: int) -> Tensor:
    """(N, L) twice -> (N, n_steps, L): straight lines, both ends included."""
    return torch.lerp(start[:, None], end[:, None], torch.linspace(0, 1, n_steps)[:, None])


def spherical(start: Tensor, end: Tensor, n_steps: int) -> Tensor:
    """(N, L) twice -> (N, n_steps, L): along great circles, with lengths in between.

    In many dimensions N(0, I) has its mass in a shell, which straight lines leave (White 2016).
    """
    lengths = linear(start.norm(dim=1, keepdim=True), end.norm(dim=1, keepdim=True), n_steps)
    return lengths * F.normalize(linear(F.normalize(start), F.normalize(end), n_steps), dim=-1)


def main() -> None:
    parser = make_parser("Interpolates between pairs of test images of different digits.")
    add = parser.add_argument
    add("--n_pairs", type=number(1, 50), default=8, help="rows")
    add("--n_steps", type=number(2, 50), default=12, help="images from start to end")
    args = parser.parse_args()
    test_set = EncodedTestSet(args)
    first, second = torch.randperm(len(test_set.mu), generator=rng(args.seed)).view(2, -1)
    differ = test_set.labels[first] != test_set.labels[second]
    first, second = first[differ][: args.n_pairs], second[differ][: args.n_pairs]
    path, kind = (spherical, "Spherical") if test_set.mu.shape[1] > 2 else (linear, "Linear")
    u = path(test_set.u[first], test_set.u[second], args.n_steps)  # (N, n_steps, L)

    decoded = test_set.decode_normal(u).view(-1, args.n_steps, 1, 28, 28)
    start, end = (test_set.images[index, None] / 255 for index in (first, second))
    rows = torch.cat((start, decoded, end), dim=1)  # (N, n_steps + 2, 1, 28, 28)
    title = f"{kind} interpolation between the test images at both ends\n{test_set.name}"
    axes = draw_grid(rows.flatten(0, 1), args.n_steps + 2, title)
    for boundary in (1, args.n_steps + 1):
        axes.axvline(boundary, color="white", linewidth=2)
    save_figure(axes.figure, args.save_dir, "interpolation")


if __name__ == "__main__":
    cli.run(main)
