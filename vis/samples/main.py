"""Model samples: decoded draws from the prior.

python3 vis/samples/main.py --model_params pretrained/vae_mnist.pth --n_rows 10
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from utils import cli
from utils.cli import number
from utils.device import rng
from vis.common import draw_grid, load_model, make_parser, save_figure


def main() -> None:
    parser = make_parser("Decodes samples from the prior.")
    parser.add_argument("--n_rows", type=number(1, 100), default=10, help="rows of ten samples")
    args = parser.parse_args()
    model, _, name = load_model(args)
    images = model.sample(10 * args.n_rows, rng(args.seed, device=model.device)).cpu()
    axes = draw_grid(images, 10, f"Samples from the prior\n{name}")
    save_figure(axes.figure, args.save_dir, "samples")


if __name__ == "__main__":
    cli.run(main)
