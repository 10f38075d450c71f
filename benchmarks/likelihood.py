"""VAEs by the hour: the minutes and the likelihood of runs with a given number of epochs.

python3 benchmarks/likelihood.py --n_epochs 23 --n_seeds 3 --save_dir runs/5
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.common import evaluate, machine, train
from utils import cli

RECIPE = (
    "--arch conv --latent_dim 40 --binarize dynamic --recon_weight 784 --lr 0.002 --batch_size 128"
)
NLL = "--n_images 1000 --n_importance_samples 500"  # flags of evaluate.py for each split


def main() -> None:
    parser = cli.parser("Times runs of train.py and measures their NLL.")
    add = parser.add_argument
    add("--n_epochs", type=cli.number(1), required=True, help="epochs of each run")
    add("--n_seeds", type=cli.number(1), default=1, help=f"number of seeds, from {cli.SEED} on")
    add("--save_dir", type=Path, required=True, help="folder with a subfolder for each seed")
    add("--train_flags", default="", help="more flags for train.py, in one pair of quotes")
    args = parser.parse_args()
    flags = f"{RECIPE} {args.train_flags}"
    command = f"train.py {flags} --n_epochs {args.n_epochs}"
    print(f"{machine(flags)}\n{command}\n-ELBO of all validation images; NLL: {NLL}\n")
    print("| seed | minutes | -ELBO | NLL | test NLL |\n|---|---|---|---|---|")
    for seed in range(cli.SEED, cli.SEED + args.n_seeds):
        folder = args.save_dir / str(seed)
        best = train(f"{command} --seed {seed}", folder)
        row = f"{seed} | {best['run_seconds'] / 60:.1f} | {best['val_neg_elbo']:.2f}"
        for split in ("val", "test"):
            r = evaluate(f"evaluate.py {NLL} --split {split}", folder)
            row += f" | {r['nll']:.2f} +- {r['nll_stderr']:.2f}"
        print(f"| {row} |", flush=True)


if __name__ == "__main__":
    cli.run(main)
