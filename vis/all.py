"""Draws every figure of a model into one folder.

python3 vis/all.py --model_params pretrained/vae_mnist.pth --save_dir figures
"""

import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import cli
from vis.common import make_parser

FIGURES = (
    "encoder_output --target mean",
    "encoder_output --target std",
    "decoder_output",
    "decoder_output --quantile",
    "reconstruct",
    "samples",
    "interpolation",
    "traversal",
    "explorer",
)


def main() -> None:
    parser = make_parser("Draws every figure of a model; each prints its path.")
    args = parser.parse_args()  # a wrong flag ends here, before the first figure
    own_flags = sys.argv[1:]
    commands = [[*figure.split(), *own_flags] for figure in FIGURES]
    for metrics in (args.model_params.with_name("metrics.csv"), args.model_params.with_suffix(".csv")):
        if metrics.is_file():  # of the run, beside its model
            commands.append(["curves", "--metrics", str(metrics), "--save_dir", str(args.save_dir)])
    codes = []
    for command in commands:
        sys.argv = command
        try:
            runpy.run_path(str(Path(__file__).with_name(command[0]) / "main.py"), run_name="__main__")
        except SystemExit as stopped:  # it has printed why
            codes.append(stopped.code)
    sys.exit(max(codes, default=0))


if __name__ == "__main__":
    cli.run(main)
