"""From one test digit to another through latent space, one pair a row.

python3 vis/interpolation/main.py --model_params pretrained/vae_mnist.pth --n_pairs 8
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch
from torch import Tensor

import cli
from data import to_float
from vis.common import load_subject, make_parser, plt, save_figure, show_images


def linear(start: Tensor, end: Tensor, n_steps: int) -> Tensor:
    """(N, L) twice -> (N, n_steps, L): straight lines, both ends included."""
    t = torch.linspace(0, 1, n_steps)[:, None]
    return (1 - t) * start[:, None] + t * end[:, None]


def spherical(start: Tensor, end: Tensor, n_steps: int) -> Tensor:
    """(N, L) twice -> (N, n_steps, L): along great circles, lengths in between; stays where the prior has its mass.

    Above two dimensions a Gaussian has its mass in a shell, which the straight line cuts through (White 2016).
    """
    cosine = torch.nn.functional.cosine_similarity(start, end).clamp(-1 + 1e-6, 1 - 1e-6)
    angle = torch.acos(cosine)[:, None, None]  # (N, 1, 1)
    t = torch.linspace(0, 1, n_steps)[:, None].to(angle)
    directions = torch.nn.functional.normalize(torch.stack((start, end)), dim=-1)[:, :, None]  # (2, N, 1, L)
    lengths = linear(start.norm(dim=1, keepdim=True), end.norm(dim=1, keepdim=True), n_steps)  # (N, n_steps, 1)
    turned = torch.sin((1 - t) * angle) * directions[0] + torch.sin(t * angle) * directions[1]
    return lengths * turned / torch.sin(angle)


def main() -> None:
    parser = make_parser("Interpolates between pairs of test images of different digits.")
    parser.add_argument("--n_pairs", type=cli.integer(1, 50), default=8, help="rows")
    parser.add_argument("--n_steps", type=cli.integer(2, 50), default=12, help="images from start to end")
    args = parser.parse_args()
    subject = load_subject(args)
    order = torch.randperm(len(subject.images), generator=cli.rng(args.seed))
    first, second = order.view(2, -1)
    differ = subject.labels[first] != subject.labels[second]
    first, second = first[differ][: args.n_pairs], second[differ][: args.n_pairs]
    path = spherical if subject.mu.shape[1] > 2 and subject.model.config.prior == "normal" else linear
    z = path(subject.mu[first], subject.mu[second], args.n_steps)  # (N, n_steps, L)
    decoded = subject.decode(z).view(-1, args.n_steps, 1, 28, 28)
    ends = [to_float(subject.images[index], torch.device("cpu"))[:, None] for index in (first, second)]
    rows = torch.cat((ends[0], decoded, ends[1]), dim=1).flatten(0, 1)  # original, decoded ones, original

    n_columns = args.n_steps + 2
    figure, axes = plt.subplots(figsize=(0.6 * n_columns, 0.6 * len(first) + 0.8))
    show_images(axes, rows, n_columns)
    for boundary in (28, 28 * (n_columns - 1)):
        axes.axvline(boundary - 0.5, color="white", linewidth=2)
    kind = "Spherical" if path is spherical else "Linear"
    axes.set_title(f"{kind} interpolation between the test images at both ends\n{subject.name}")
    save_figure(figure, args.save_dir, "interpolation")


if __name__ == "__main__":
    cli.run(main)
