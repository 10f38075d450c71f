"""The likelihood within a budget: minutes to each validation -ELBO, and the NLL at the end.

    python3 benchmarks/likelihood.py --minutes 15 --train_flags "--prior flow" --save_dir runs/long

Runs train.py with as many epochs as fit into the budget, then evaluate.py on its best checkpoint.
"""

import json
import shlex
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from utils import cli

from benchmarks.common import metrics, run
from data import SPLITS

RECIPE = (
    "--arch conv --latent_dim 40 --binarize dynamic --recon_weight 784 --lr 0.002 --batch_size 128"
)
LEVELS = (110, 100, 95, 90, 88, 86)  # nats
N_TRIAL = 5_000  # images of the short run that tells how long an epoch takes
N_EVALUATED = 1_000  # validation images, for the NLL


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


def main() -> None:
    parser = cli.parser("Trains for a budget of minutes, then measures the NLL.")
    add = parser.add_argument
    add("--minutes", type=cli.number(1, 10_000), default=15.0, help="for the whole command")
    add("--save_dir", type=Path, required=True, help="folder of the run")
    add("--train_flags", default="", help="more flags for train.py, in one pair of quotes")
    args = parser.parse_args()
    flags = shlex.split(f"{RECIPE} {args.train_flags}")

    n_epochs = epochs_in(args.minutes, flags)
    done = run("train.py", *flags, "--n_epochs", str(n_epochs), "--save_dir", args.save_dir)
    neg_elbos = [row["val_neg_elbo"] for row in metrics(args.save_dir / "last.pth")]
    how = ("--split", "val", "--n_images", str(N_EVALUATED), "--json")
    r = json.loads(run("evaluate.py", "--model_params", args.save_dir / "best.pth", *how).lines[-1])

    print(f"{n_epochs} epochs, {done.seconds / 60:.1f} minutes: train.py {shlex.join(flags)}\n")
    cells = []
    for level in LEVELS:
        reached = (n for n, neg_elbo in enumerate(neg_elbos) if neg_elbo <= level)
        first = next(reached, None)
        cells.append("" if first is None else f"{done.epoch_ends[first] / 60:.1f}")
    cells += [f"{min(neg_elbos):.2f}", f"{r['nll']:.2f} +- {r['nll_stderr']:.2f}"]
    print(f"| validation -ELBO | {' | '.join(map(str, LEVELS))} | best | NLL |")
    print("|---" * (len(cells) + 1) + "|")
    print(f"| minutes | {' | '.join(cells)} |")
    images = f"{r['n_images']:,} validation images"
    print(f"\nNLL: {images}, K={r['n_importance_samples']}, {r['precision']}")


if __name__ == "__main__":
    cli.run(main)
