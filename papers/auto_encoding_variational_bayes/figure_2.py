"""The paper's figure 2 on MNIST: the lower bound against training samples, for five sizes of z.

python3 papers/auto_encoding_variational_bayes/figure_2.py
python3 papers/auto_encoding_variational_bayes/figure_2.py --recipe ours

--recipe paper trains AEVB and wake-sleep. --recipe variance trains AEVB and takes the paper's 0.01
as the variance of the initial weights. --recipe ours runs AEVB (AdamW with warm-up). It uses
PyTorch's initialisation (mean image for the output bias) and posterior variances up to 1.
"""

import sys
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from papers.auto_encoding_variational_bayes.experiment import BINARIZE, RECIPES, Network
from papers.auto_encoding_variational_bayes.runner import bound, draw, figure_rows, make_parser
from utils import cli

LATENT_DIMS, ALGORITHMS = (3, 5, 10, 20, 200), ("AEVB", "wake-sleep")


def main() -> None:
    parser = make_parser("Reproduces figure 2 of the paper on MNIST.")
    add = parser.add_argument
    add("--latent_dim", type=int, choices=LATENT_DIMS, nargs="+", default=LATENT_DIMS, help="sizes")
    add("--algorithm", choices=ALGORITHMS, nargs="+", default=ALGORITHMS, help="for --recipe paper")
    add("--recipe", choices=RECIPES, default="paper", help="how to train the networks")
    add("--binarize", choices=BINARIZE, default="none", help="never, once, or for each batch")
    args = parser.parse_args()
    how = {"recipe": args.recipe, "binarize": args.binarize}
    algorithms = args.algorithm if args.recipe == "paper" else ("AEVB",)
    networks = [Network(name, n, **how) for n, name in product(args.latent_dim, algorithms)]
    rows = figure_rows(networks, bound, args)
    panels = {str(n): f"$N_z$ = {n}" for n in LATENT_DIMS}
    rows = [row for row in rows if row["binarize"] == args.binarize]
    limits = {"xlim": (1e5, 4e8), "ylim": (-155, -88)}
    draw(rows, "latent_dim", panels, args.save_dir, ylabel="lower bound (nats per image)", **limits)


if __name__ == "__main__":
    cli.run(main)
