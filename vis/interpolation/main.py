"""From one test digit to another through latent space, one pair a row.

python3 vis/interpolation/main.py --model_params pretrained/vae_mnist.pth --n_pairs 8

With a flow the path is one of u ~ N(0, I), of which the flow makes z.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from utils import cli
from utils.device import rng

import torch
import torch.nn.functional as F

from data import to_float
from vis.common import Subject, draw_grid, make_parser, save_figure


def linear(start: torch.Tensor, end: torch.Tensor, n_steps: int) -> torch.Tensor:
    """(N, L) twice -> (N, n_steps, L): straight lines, both ends included."""
    t = torch.linspace(0, 1, n_steps)[:, None]
    return (1 - t) * start[:, None] + t * end[:, None]


def spherical(start: torch.Tensor, end: torch.Tensor, n_steps: int) -> torch.Tensor:
    """(N, L) twice -> (N, n_steps, L): along great circles, with lengths in between.

    In many dimensions N(0, I) has its mass in a shell, which straight lines leave (White 2016).
    """
    lengths = linear(start.norm(dim=1, keepdim=True), end.norm(dim=1, keepdim=True), n_steps)
    directions = linear(F.normalize(start), F.normalize(end), n_steps)
    return lengths * F.normalize(directions, dim=-1)


def main() -> None:
    parser = make_parser("Interpolates between pairs of test images of different digits.")
    add = parser.add_argument
    add("--n_pairs", type=cli.integer(1, 50), default=8, help="rows")
    add("--n_steps", type=cli.integer(2, 50), default=12, help="images from start to end")
    args = parser.parse_args()
    subject = Subject(args)
    first, second = torch.randperm(len(subject.mu), generator=rng(args.seed)).view(2, -1)
    differ = subject.labels[first] != subject.labels[second]
    first, second = first[differ][: args.n_pairs], second[differ][: args.n_pairs]
    path, kind = (spherical, "Spherical") if subject.mu.shape[1] > 2 else (linear, "Linear")
    u = path(subject.u[first], subject.u[second], args.n_steps)  # (N, n_steps, L)

    decoded = subject.decode_normal(u).view(-1, args.n_steps, 1, 28, 28)
    start, end = (to_float(subject.images[index])[:, None] for index in (first, second))
    rows = torch.cat((start, decoded, end), dim=1)  # (N, n_steps + 2, 1, 28, 28)
    title = f"{kind} interpolation between the test images at both ends\n{subject.name}"
    axes = draw_grid(rows.flatten(0, 1), args.n_steps + 2, title)
    for boundary in (1, args.n_steps + 1):
        axes.axvline(boundary, color="white", linewidth=2)
    save_figure(axes.figure, args.save_dir, "interpolation")


if __name__ == "__main__":
    cli.run(main)
