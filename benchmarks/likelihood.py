"""VAEs by the hour: the likelihood that a budget of minutes buys.

    python3 benchmarks/likelihood.py --minutes 5 --n_seeds 3 --save_dir runs/5
    python3 benchmarks/likelihood.py --train_flags "--prior flow --kl_warmup 100" --save_dir runs/15
    OMP_NUM_THREADS=1 taskset -c 0 python3 benchmarks/likelihood.py --n_epochs 23 --save_dir runs/1

Runs train.py with as many epochs as fit into the budget, then evaluate.py on its best checkpoint.
With --n_epochs, the epochs of a budget of all cores can be run with one core for each seed.
"""

import json
import shlex
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from utils import cli
from utils.checkpoint import load_checkpoint
from utils.flags import Settings

from benchmarks.common import describe, flops_of_an_image, machine, metrics, run
from data import SPLITS

RECIPE = (
    "--arch conv --latent_dim 40 --binarize dynamic --recon_weight 784 --lr 0.002 --batch_size 128"
)
N_TRIAL = 5_000  # images of the short run that tells how long an epoch takes
N_EVALUATED, N_DRAWS = 1_000, 500  # images of each split, and importance samples, for the NLL
COLUMNS = ("seed", "minutes", "epochs", "million images", "PFLOP", "-ELBO", "NLL", "test NLL")


def epochs_in(minutes: float, flags: list[str]) -> int:
    """How many epochs of train.py fit, judged by two on a few images. Raises UserError."""
    with TemporaryDirectory() as folder:
        few = ("--n_train", str(N_TRIAL), "--n_epochs", "2", "--save_dir", folder)
        trial = run("train.py", *flags, *few)
        training = metrics(Path(folder, "last.pth"))[1]["seconds"]  # without its validation
    epoch = trial.epoch_ends[1] - trial.epoch_ends[0]
    startup = trial.seconds - 2 * epoch
    full_epoch = epoch + training * (SPLITS["train"][1].stop / N_TRIAL - 1)
    return max(1, int((60 * minutes - startup) / full_epoch))


def nll(checkpoint: Path, split: str) -> str:
    """Mean and standard error over the first images of evaluate.py's order. Raises UserError."""
    how = f"--split {split} --n_images {N_EVALUATED} --n_importance_samples {N_DRAWS} --json"
    done = run("evaluate.py", "--model_params", checkpoint, *how.split())
    result = json.loads(done.lines[-1])
    return f"{result['nll']:.2f} +- {result['nll_stderr']:.2f}"


def main() -> None:
    parser = cli.parser("Trains for a budget of minutes, then measures the NLL.")
    add, seeds = parser.add_argument, cli.integer(1, 1000)
    add("--minutes", type=cli.number(1, 10_000), default=15.0, help="for all of train.py")
    add("--n_epochs", type=cli.integer(1, 1_000_000), help="in place of --minutes")
    add("--n_seeds", type=seeds, default=1, help=f"of {Settings.seed}, {Settings.seed + 1}, ...")
    add("--save_dir", type=Path, required=True, help="a folder for each seed is made in it")
    add("--train_flags", default="", help="more flags for train.py, in one pair of quotes")
    args = parser.parse_args()
    flags = shlex.split(f"{RECIPE} {args.train_flags}")
    flags += ["--n_epochs", str(args.n_epochs or epochs_in(args.minutes, flags))]

    print(f"train.py {shlex.join(flags)}\n\n| {' | '.join(COLUMNS)} |")
    print("|---" * len(COLUMNS) + "|", flush=True)
    for seed in range(Settings.seed, Settings.seed + args.n_seeds):
        folder = args.save_dir / str(seed)
        done = run("train.py", *flags, "--seed", str(seed), "--save_dir", folder)
        model, checkpoint = load_checkpoint(folder / "last.pth")
        n_epochs, best = len(checkpoint["metrics"]), metrics(folder / "best.pth")[-1]
        n_images = n_epochs * checkpoint["args"]["n_train"]
        cells = [f"{seed}", f"{done.seconds / 60:.1f}", f"{n_epochs}", f"{n_images / 1e6}"]
        cells += [f"{n_images * flops_of_an_image(model) / 1e15:.2f}"]
        cells += [f"{best['val_neg_elbo']:.2f}"]
        cells += [nll(folder / "best.pth", split) for split in ("val", "test")]
        print(f"| {' | '.join(cells)} |", flush=True)
    print(f"\n-ELBO: all validation images; NLL: {N_EVALUATED:,} images, K={N_DRAWS}")
    print(describe(machine(checkpoint["args"]["precision"])))


if __name__ == "__main__":
    cli.run(main)
