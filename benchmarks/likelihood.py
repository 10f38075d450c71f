"""VAEs by the hour: the likelihood reached within a given number of minutes.

    python3 benchmarks/likelihood.py --minutes 5 --n_seeds 3 --save_dir runs/5
    OMP_NUM_THREADS=1 taskset -c 0 python3 benchmarks/likelihood.py --n_epochs 23 --save_dir runs/1

With --n_epochs, runs on one core can match the epochs of runs on all cores.
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


def epochs_in(minutes: float, command: str, folder: Path) -> int:
    """How many epochs fit the budget, estimated from runs of 1 and 2 epochs. Raises UserError."""
    one, two = (train(f"{command} --n_epochs {n}", folder / f"trial_{n}") for n in (1, 2))
    epoch = two["run_seconds"] - one["run_seconds"]
    return max(1, 1 + int((60 * minutes - one["run_seconds"]) / epoch))


def main() -> None:
    parser = cli.parser("Trains within a time budget, then measures the NLL.")
    add = parser.add_argument
    add("--minutes", type=cli.number(1.0), default=15.0, help="time budget of each run")
    add("--n_epochs", type=cli.number(1), help="number of epochs, instead of --minutes")
    add("--n_seeds", type=cli.number(1), default=1, help=f"number of seeds, from {cli.SEED} on")
    add("--save_dir", type=Path, required=True, help="folder with a subfolder for each seed")
    add("--train_flags", default="", help="more flags for train.py, in one pair of quotes")
    args = parser.parse_args()
    flags = f"{RECIPE} {args.train_flags}"
    n_epochs = args.n_epochs or epochs_in(args.minutes, f"train.py {flags}", args.save_dir)
    command = f"train.py {flags} --n_epochs {n_epochs}"
    print(f"{machine(flags)}\n{command}\n-ELBO of all validation images; NLL: {NLL}\n")
    print("| seed | minutes | epochs | -ELBO | NLL | test NLL |\n|---|---|---|---|---|---|")
    for seed in range(cli.SEED, cli.SEED + args.n_seeds):
        folder = args.save_dir / str(seed)
        best = train(f"{command} --seed {seed}", folder)
        row = f"{seed} | {best['run_seconds'] / 60:.1f} | {n_epochs} | {best['val_neg_elbo']:.2f}"
        for split in ("val", "test"):
            r = evaluate(f"evaluate.py {NLL} --split {split}", folder)
            row += f" | {r['nll']:.2f} +- {r['nll_stderr']:.2f}"
        print(f"| {row} |", flush=True)


if __name__ == "__main__":
    cli.run(main)
