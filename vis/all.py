"""Draws the figures of a model into one folder.

python3 vis/all.py --model_params pretrained/vae_mnist.pth --save_dir figures
"""

import sys
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from utils import cli
from utils.flags import Settings

from vis.common import NotApplicable, load_model, make_parser

FIGURES = (
    "encoder_output --target mean",
    "encoder_output --target std",
    "decoder_output",
    "decoder_output --quantile",
    "reconstruct",
    "samples",
    "interpolation",
    "traversal",
    "posterior",
)


def main() -> None:
    parser = make_parser("Draws the figures of a model; each prints its path.")
    args = parser.parse_args()
    commands = [[*figure.split(), *sys.argv[1:]] for figure in FIGURES]
    csv_files = (args.model_params.with_name("metrics.csv"), args.model_params.with_suffix(".csv"))
    weight = load_model(args)[1]["args"].get("recon_weight", Settings.recon_weight)
    for path in filter(Path.is_file, csv_files):  # of the run, beside its model
        how = ["--save_dir", str(args.save_dir), "--recon_weight", str(weight)]
        commands.append(["curves", "--metrics", str(path), *how])
    commands.append(["explorer", *sys.argv[1:]])
    for command in commands:
        sys.argv = command
        try:
            import_module(f"vis.{command[0]}.main").main()
        except NotApplicable as reason:
            print(f"{command[0]} left out: {reason}")


if __name__ == "__main__":
    cli.run(main)
