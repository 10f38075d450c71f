"""Saves the figures of a model in one folder.

python3 vis/all.py --model_params pretrained/vae_mnist.pth
"""

import sys
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from utils import cli
from vis.common import NotApplicable, figures_of, make_parser


def main() -> None:
    args = make_parser("Draws the figures of a model and prints their paths.").parse_args()
    folder = str(args.save_dir or figures_of(args.model_params))
    names = {path.parent.name for path in Path(__file__).parent.glob("*/main.py")}
    commands = [[name, *sys.argv[1:]] for name in sorted(names - {"curves", "training"})]
    commands.append(["decoder_output", "--quantile", *sys.argv[1:]])
    csv_files = (args.model_params.with_name("metrics.csv"), args.model_params.with_suffix(".csv"))
    for path in filter(Path.is_file, csv_files):  # if the metrics are beside the model
        commands.append(["curves", "--metrics", str(path), "--save_dir", folder])
    for command in commands:
        sys.argv = command
        try:
            import_module(f"vis.{command[0]}.main").main()
        except NotApplicable as reason:
            print(f"{command[0]} left out: {reason}")


if __name__ == "__main__":
    cli.run(main)
