"""Time to quality: minutes from the start of the command to each validation -ELBO, and the NLL at the end.

    python3 benchmarks/likelihood.py --minutes 15 --train_flags "--prior flow" --save_dir runs/likelihood

Runs train.py with as many epochs as fit into the budget, then evaluate.py on its best checkpoint.
"""

import json
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import cli
from data import SPLITS
from errors import UserError

ROOT = Path(__file__).resolve().parents[1]
RECIPE = shlex.split("--arch conv --latent_dim 40 --binarize dynamic --recon_weight 784 --lr 0.002")
LEVELS = (110, 100, 95, 90, 88, 86)  # nats
N_TRIAL = 5_000  # images of the short run that tells how long an epoch takes
N_EVALUATED = 1_000  # validation images, for the NLL
UNCOUNTED_SECONDS = 15  # of the command beside its epochs: imports, data, test figures


def train(save_dir: Path, *flags: str) -> list[tuple[float, float, float]]:
    """Runs train.py; for each epoch: seconds since the command began, validation -ELBO, seconds of the training alone.

    Raises UserError.
    """
    start, epochs = time.perf_counter(), []
    command = [sys.executable, ROOT / "train.py", *RECIPE, *flags, "--save_dir", save_dir]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if found := re.search(r"val .* -ELBO (\S+) nats \| (\S+) s", line):
                epochs.append((time.perf_counter() - start, float(found[1]), float(found[2])))
                print(line, end="", file=sys.stderr, flush=True)
        errors = process.stderr.read().strip()
    if process.returncode:
        raise UserError(f"train.py failed: {(errors.splitlines() or ['it was killed.'])[-1]}")
    return epochs


def main() -> None:
    parser = cli.parser("Trains for a budget of minutes; prints when each validation -ELBO was reached, and the last NLL.")
    parser.add_argument("--minutes", type=cli.number(1, 10_000), default=15.0, help="for the whole training command")
    parser.add_argument("--save_dir", type=Path, required=True, help="folder of the run")
    parser.add_argument("--train_flags", default="", help="more flags for train.py, in one pair of quotes")
    args = parser.parse_args()
    flags = shlex.split(args.train_flags)

    with tempfile.TemporaryDirectory() as folder:
        (first, _, _), (second, _, seconds) = train(Path(folder), *flags, "--n_train", str(N_TRIAL), "--n_epochs", "2")
    seconds = second - first - seconds + seconds * SPLITS["train"][1].stop / N_TRIAL  # of a full epoch and its validation
    n_epochs = max(1, int((60 * args.minutes - UNCOUNTED_SECONDS) / seconds))
    start = time.perf_counter()
    epochs = train(args.save_dir, *flags, "--n_epochs", str(n_epochs))
    minutes = (time.perf_counter() - start) / 60
    command = [sys.executable, ROOT / "evaluate.py", "--model_params", args.save_dir / "best.pth", "--split", "val", "--json"]
    command += ["--n_images", str(N_EVALUATED)]
    result = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)

    print(f"{n_epochs} epochs, {minutes:.1f} minutes for the whole command: " + " ".join(["train.py", *RECIPE, *flags]))
    reached = [next((f"{t / 60:.1f}" for t, neg_elbo, _ in epochs if neg_elbo <= level), "") for level in LEVELS]
    best = min(neg_elbo for _, neg_elbo, _ in epochs)
    print("\n| validation -ELBO | " + " | ".join(map(str, LEVELS)) + " | best | NLL |")
    print("|---" * (len(LEVELS) + 3) + "|")
    print(f"| minutes | {' | '.join(reached)} | {best:.2f} | {result['nll']:.2f} +- {result['nll_stderr']:.2f} |")
    print(f"\nNLL: {result['n_images']:,} validation images, K={result['n_importance_samples']}, {result['precision']}")


if __name__ == "__main__":
    cli.run(main)
