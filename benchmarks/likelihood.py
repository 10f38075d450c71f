"""VAEs by the hour: the likelihood that a budget of minutes buys.

    python3 benchmarks/likelihood.py --minutes 5 --n_seeds 3 --save_dir runs/5
    OMP_NUM_THREADS=1 taskset -c 0 python3 benchmarks/likelihood.py --n_epochs 23 --save_dir runs/1

Runs train.py with as many epochs as fit into the budget, then evaluate.py on its best checkpoint.
With --n_epochs, one core per seed can run the epochs that fit into a budget of all cores.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.common import machine, metrics, run
from utils import cli
from utils.cli import SEED

RECIPE = (
    "--arch conv --latent_dim 40 --binarize dynamic --recon_weight 784 --lr 0.002 --batch_size 128"
)
NLL = "--n_images 1000 --n_importance_samples 500"  # of each split


def epochs_in(minutes: float, flags: str, folder: Path) -> int:
    """How many epochs of train.py fit, from the seconds of one and of two. Raises UserError."""
    one, two = (
        run(f"train.py {flags} --n_epochs {n} --save_dir", folder / f"trial_{n}").seconds
        for n in (1, 2)
    )
    return max(1, 1 + int((60 * minutes - one) / (two - one)))


def nll(checkpoint: Path, split: str) -> str:
    """Mean and standard error over images. Raises UserError."""
    done = run(f"evaluate.py {NLL} --split {split} --json --model_params", checkpoint)
    result = json.loads(done.lines[-1])
    return f"{result['nll']:.2f} +- {result['nll_stderr']:.2f}"


def main() -> None:
    parser = cli.parser("Trains for a budget of minutes, then measures the NLL.")
    add = parser.add_argument
    add("--minutes", type=cli.number(1.0), default=15.0, help="for all of train.py")
    add("--n_epochs", type=cli.number(1), help="in place of --minutes")
    add("--n_seeds", type=cli.number(1), default=1, help=f"seeds {SEED}, {SEED + 1}, ...")
    add("--save_dir", type=Path, required=True, help="a folder for each seed is made in it")
    add("--train_flags", default="", help="more flags for train.py, in one pair of quotes")
    args = parser.parse_args()
    flags = f"{RECIPE} {args.train_flags}"
    print(machine(flags), flush=True)
    n_epochs = args.n_epochs or epochs_in(args.minutes, flags, args.save_dir)
    flags += f" --n_epochs {n_epochs}"
    print(f"train.py {flags}\n-ELBO of all validation images; NLL: {NLL}\n")
    print("| seed | minutes | epochs | -ELBO | NLL | test NLL |\n|---|---|---|---|---|---|")
    for seed in range(SEED, SEED + args.n_seeds):
        folder = args.save_dir / str(seed)
        done = run(f"train.py {flags} --seed {seed} --save_dir", folder)
        neg_elbo = metrics(folder, "best.pth")[-1]["val_neg_elbo"]
        nlls = " | ".join(nll(folder / "best.pth", split) for split in ("val", "test"))
        minutes = done.seconds / 60
        print(f"| {seed} | {minutes:.1f} | {n_epochs} | {neg_elbo:.2f} | {nlls} |", flush=True)


if __name__ == "__main__":
    cli.run(main)
