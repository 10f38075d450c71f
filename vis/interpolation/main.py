"""Each row decodes a straight line in latent space between two test digits.

python3 vis/interpolation/main.py --model_params pretrained/vae_mnist.pth
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from utils import cli
from utils.device import rng
from vis.common import EncodedTestSet, draw_grid, make_parser, save_figure

N_PAIRS, N_STEPS = 7, 10  # number of rows, and of decoded images per row


def main() -> None:
    args = make_parser("Interpolates between test images of different digits.").parse_args()
    test_set = EncodedTestSet(args)
    first, second = torch.randperm(len(test_set.mu), generator=rng(args.seed)).view(2, -1)
    differ = test_set.labels[first] != test_set.labels[second]
    first, second = first[differ][:N_PAIRS], second[differ][:N_PAIRS]
    share = torch.linspace(0, 1, N_STEPS)[:, None]  # fraction of the way from `first` to `second`
    u = torch.lerp(test_set.u[first, None], test_set.u[second, None], share)  # (N, N_STEPS, L)

    decoded = test_set.decode_normal(u).view(-1, N_STEPS, 1, 28, 28)
    start, end = (test_set.images[index, None] / 255 for index in (first, second))
    rows = torch.cat((start, decoded, end), dim=1)  # (N, N_STEPS + 2, 1, 28, 28)
    title = f"Straight lines in latent space, decoded\n{test_set.name}"
    axes = draw_grid(rows.flatten(0, 1), N_STEPS + 2, title)
    for boundary in (1, N_STEPS + 1):
        axes.axvline(boundary, color="white", linewidth=2)
    axes.set_xticks([0.5, N_STEPS / 2 + 1, N_STEPS + 1.5], ["image", "decoded", "image"])
    save_figure(axes.figure, args.save_dir, "interpolation")


if __name__ == "__main__":
    cli.run(main)
