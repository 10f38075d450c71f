"""Copies a checkpoint and rounds its weights to half precision, which halves their size.

python3 pretrained/halve.py --model_params runs/40d/best.pth --save_to 40d.pth
"""

import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from checkpoint import load_checkpoint, save_checkpoint
from utils import cli


def main() -> None:
    parser = cli.parser("Copies a checkpoint in half precision.")
    add = parser.add_argument
    add("--model_params", type=Path, required=True, help="a model's .pth file")
    add("--save_to", type=Path, required=True, help="the .pth file to write")
    args = parser.parse_args()
    model, checkpoint = load_checkpoint(args.model_params)
    run_args = Namespace(**checkpoint["args"])
    save_checkpoint(args.save_to, model.half(), run_args, checkpoint["metrics"])
    print(args.save_to)


if __name__ == "__main__":
    cli.run(main)
