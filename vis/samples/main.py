"""Digits that the model makes up: draws from the prior, decoded.

python3 vis/samples/main.py --model_params pretrained/vae_mnist.pth --n_rows 10
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import cli
from vis.common import load_model, make_parser, plt, save_figure, show_images

N_COLUMNS = 10


def main() -> None:
    parser = make_parser("Draws decoded samples of the prior.")
    parser.add_argument("--n_rows", type=cli.integer(1, 100), default=10, help="of ten samples each")
    args = parser.parse_args()
    model, _, device, name = load_model(args)
    images = model.sample(args.n_rows * N_COLUMNS, generator=cli.rng(args.seed, device=device)).cpu()
    figure, axes = plt.subplots(figsize=(7, 0.7 * args.n_rows + 0.6))
    show_images(axes, images, N_COLUMNS)
    axes.set_title(f"Samples from the prior\n{name}")
    save_figure(figure, args.save_dir, "samples")


if __name__ == "__main__":
    cli.run(main)
