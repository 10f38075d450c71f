"""What each latent dimension does: one row per active unit, the others at their mean.

python3 vis/traversal/main.py --model_params pretrained/vae_mnist.pth
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch

import cli
from evaluate import ACTIVE_VARIANCE
from vis.common import load_subject, make_parser, plt, save_figure, show_images


def main() -> None:
    parser = make_parser("Moves one latent dimension at a time, from -3 to 3 of the aggregate posterior's standard deviations.")
    parser.add_argument("--n_steps", type=cli.integer(2, 50), default=13, help="images a row")
    parser.add_argument("--max_rows", type=cli.integer(1, 100), default=20, help="active units, the largest KL first")
    args = parser.parse_args()
    subject = load_subject(args)
    active = subject.mu.var(dim=0, correction=0) > ACTIVE_VARIANCE
    dimensions = [d for d in subject.dimensions_by_kl() if active[d]][: args.max_rows] or subject.dimensions_by_kl()[:1]
    centre = subject.mu.mean(dim=0)
    std = (subject.mu.var(dim=0, correction=0) + subject.logvar.exp().mean(dim=0)).sqrt()  # of the aggregate posterior
    steps = torch.linspace(-3, 3, args.n_steps)
    z = centre.expand(len(dimensions), args.n_steps, -1).clone()  # (rows, n_steps, L)
    for row, dimension in enumerate(dimensions):
        z[row, :, dimension] += steps * std[dimension]

    figure, axes = plt.subplots(figsize=(0.6 * args.n_steps + 1, 0.6 * len(dimensions) + 1))
    show_images(axes, subject.decode(z), args.n_steps)
    axes.set_yticks([28 * row + 13.5 for row in range(len(dimensions))])
    axes.set_yticklabels([f"$z_{{{d + 1}}}$  {subject.kl[d]:.2f} nats" for d in dimensions])
    axes.set_xticks([28 * column + 13.5 for column in range(0, args.n_steps, max(1, args.n_steps // 6))])
    axes.set_xticklabels([f"{steps[column]:g}" for column in range(0, args.n_steps, max(1, args.n_steps // 6))])
    axes.tick_params(length=0)
    axes.set_xlabel("standard deviations of the aggregate posterior from its mean")
    axes.set_title(f"{len(dimensions)} of {int(active.sum())} active units by their mean KL\n{subject.name}")
    save_figure(figure, args.save_dir, "traversal")


if __name__ == "__main__":
    cli.run(main)
