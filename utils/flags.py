"""The flags of train.py, and what they say of the run and of its model."""

import os
import sys
from argparse import ArgumentParser, Namespace
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from utils import cli, device
from utils.checkpoint import load_checkpoint
from utils.cli import UserError, integer, number

from data import BINARIZE, DATASETS, SPLITS
from model import ARCHS, MAX_BLOCKS, MAX_LATENT_DIM, MAX_WIDTH, PRIORS, WIDTHS, VAEConfig
from optimizer import WEIGHT_DECAY, decay

RUN_FILES = ("last.pth", "best.pth", "metrics.csv")


@dataclass(frozen=True)
class Settings:
    """What a run does with its model; it travels in every checkpoint. Raises TypeError."""

    seed: int = cli.SEED
    dataset: str = "MNIST"
    binarize: str = "none"
    n_train: int = SPLITS["train"][1].stop
    n_epochs: int = 16
    batch_size: int = 512  # over all processes
    lr: float = 6e-3  # the peak, at the end of the warm-up
    slow_encoder: float = 0.0  # its learning rate falls with the posteriors' deviation below this
    weight_decay: float = WEIGHT_DECAY
    deform: float = 0.0  # deviation of the random linear maps of training images, at first
    recon_loss: str = "bce"
    recon_weight: float = 600.0
    kl_warmup: int = 0  # steps in which the weight of the KL divergence rises to 1
    n_importance_samples: int = 1  # K of the bound that training raises
    n_grid: int = 0  # in two dimensions: half of the loss is -log p(x) from so many squared cells
    precision: str = "fp32"

    def __post_init__(self):
        for field in fields(self):
            if type(getattr(self, field.name)) is not field.type:
                raise TypeError(f"{field.name} must be of type {field.type.__name__}")

    def objective(self, row: dict) -> float:
        """The validation loss of a row of metrics."""
        return self.recon_weight * row["val_recon_loss"] + row["val_kld_loss"]

    def best(self, metrics: list[dict]) -> dict:
        """The row of the epoch that best.pth holds: that of the lowest validation loss.

        With several draws or a grid training lowers another loss: then it is the latest.
        """
        other = self.n_importance_samples > 1 or self.n_grid > 0
        return metrics[-1] if other else min(metrics, key=self.objective)


def add_run_flags(parser: ArgumentParser) -> None:
    """The fields of Settings and those of VAEConfig, but for latent_dim."""
    cli.add_seed_flag(parser)
    cli.add_common_flags(parser, Settings.batch_size)
    epochs, draws = integer(1, 1_000_000), integer(1, 10_000)

    def add(name: str, kind, help: str, **options) -> None:
        default = getattr(VAEConfig, name, getattr(Settings, name, None))
        options |= {"choices": kind} if isinstance(kind, tuple) else {"type": kind}
        parser.add_argument(f"--{name}", default=default, help=help, **options)

    add("n_epochs", epochs, "epochs in all, resumed ones included")
    add("lr", number(1e-12, 1e3), "peak: after a warm-up, it falls to 0 as a parabola")
    slow = "the encoder's learning rate falls with its posteriors' deviation below this"
    add("slow_encoder", number(0, 1e3), slow, metavar="STD")
    add("weight_decay", number(0, 1e3), "of AdamW, times the learning rate")
    deform = "random linear maps I + STRENGTH * N(0, 1) of training images, which fade out"
    add("deform", number(0, 1), deform, metavar="STRENGTH")
    add("recon_loss", ("bce", "mse"), "a mean over pixels and images")
    add("recon_weight", number(1e-6, 1e6), "with bce, 784 / beta; 784 is the exact -ELBO")
    warm = "steps in which the weight of the KL divergence rises to 1: no collapse at the start"
    add("kl_warmup", integer(0, 1_000_000_000), warm, metavar="STEPS")
    add("n_importance_samples", draws, "of the bound to raise; 1 is the ELBO", metavar="K")
    grid = "two dimensions: half of the loss is -log p(x) itself, by N x N decoded points"
    add("n_grid", integer(0, 512), grid, metavar="N")
    add("arch", ARCHS, "residual layers or residual convolutions")
    add("width", integer(1, MAX_WIDTH), f"hidden units or channels; by --arch: {WIDTHS}")
    add("n_blocks", integer(1, MAX_BLOCKS), "residual blocks; conv needs 3")
    add("prior", PRIORS, "standard normal, or a RealNVP flow")
    add("dataset", DATASETS, "torchvision's name")
    add("binarize", BINARIZE, "grey pixels, x' ~ Bernoulli(x), or x > 0.5")
    add("n_train", integer(1, Settings.n_train), "train on the first so many images")


def make_parser() -> ArgumentParser:
    parser = cli.parser("Trains a VAE: loss = recon_weight * recon_loss + kld_loss.")
    add_run_flags(parser)
    add, sizes = parser.add_argument, integer(1, MAX_LATENT_DIM)
    add("--latent_dim", type=sizes, default=VAEConfig.latent_dim, help="size of z")
    add("--save_dir", type=Path, help="folder of the run; default: a new one in ./runs")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--init_from", type=Path, metavar="PTH", help="start from this model")
    start.add_argument("--resume", type=Path, metavar="LAST_PTH", help="go on with a stopped run")
    return parser


def chosen_settings(args: Namespace) -> Settings:
    """The settings that the flags name; puts a device and a precision for "auto" in `args`.

    Raises UserError.
    """
    args.device = device.pick_device(args.device)
    args.precision = device.pick_precision(args.precision, args.device)
    if args.n_grid > 0 and args.recon_loss != "bce":
        raise UserError("--n_grid is a likelihood and needs --recon_loss bce; leave one out.")
    return Settings(**{field.name: getattr(args, field.name) for field in fields(Settings)})


def chosen_config(args: Namespace) -> VAEConfig:
    """The model that the flags name. Raises UserError."""
    given = {f.name: getattr(args, f.name) for f in fields(VAEConfig) if f.name in args}
    try:
        return VAEConfig(**given)
    except ValueError as error:
        raise UserError(f"{error}; change the flags.") from error


def read_flags() -> tuple[Namespace, VAEConfig, Settings, dict | None]:
    """The flags, the model and the settings of the run, and the checkpoint that it starts from.

    Raises UserError.
    """
    args, checkpoint = make_parser().parse_args(), None
    given = {word[2:].split("=")[0] for word in sys.argv[1:] if word.startswith("--")}
    settled = {field.name for field in fields(VAEConfig)}  # by the checkpoint
    settings = chosen_settings(args)
    if args.resume:
        model, checkpoint = load_checkpoint(args.resume)
        settled |= {"save_dir", *asdict(settings)} - {"n_epochs"}
        n_epochs = args.n_epochs if "n_epochs" in given else None
        settings = resumed_settings(args.resume, checkpoint, n_epochs)
        config, args.save_dir = model.config, args.resume.parent
    elif args.init_from:
        model, checkpoint = load_checkpoint(args.init_from)
        config, checkpoint = model.config, {"weights": checkpoint["weights"], "metrics": []}
    else:
        settled, config = set(), chosen_config(args)
    for name in sorted(settled & given):
        raise UserError(f"--{name} is settled by {args.resume or args.init_from}; leave it out.")
    if settings.n_grid > 0 and config.latent_dim != 2:
        raise UserError(f"--n_grid needs --latent_dim 2, not {config.latent_dim}; leave it out.")
    args.save_dir = args.save_dir or new_folder(settings, config)
    if not args.resume and any(os.path.exists(args.save_dir / name) for name in RUN_FILES):
        raise UserError(f"{args.save_dir} holds a run; --resume it or choose another --save_dir.")
    return args, config, settings, checkpoint


def resumed_settings(path: Path, checkpoint: dict, n_epochs: int | None) -> Settings:
    """The settings of the run in `checkpoint`, with other `n_epochs` if given. Raises UserError."""
    try:
        settings = Settings(**checkpoint["args"])
        n_done = len([settings.objective(row) for row in checkpoint["metrics"]])
        checkpoint["training"]["optimizer"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} holds no run to go on with; give its last.pth.") from error
    if n_done and not path.with_name("best.pth").exists():
        raise UserError(f"there is no best.pth beside {path}; put that of the run there.")
    if n_epochs and n_epochs < n_done:
        raise UserError(f"{path} has {n_done} epochs already; give a larger --n_epochs.")
    if n_epochs and n_epochs != settings.n_epochs:
        old, new = (settings.lr * decay(n_done / n) for n in (settings.n_epochs, n_epochs))
        print(f"note: --n_epochs {n_epochs} takes the learning rate from {old:.2g} to {new:.2g}")
        settings = replace(settings, n_epochs=n_epochs)
    return settings


def new_folder(settings: Settings, config: VAEConfig) -> Path:
    """The first name that is free of runs/MNIST_mlp_2d, runs/MNIST_mlp_2d_2, ..."""
    name, n = Path("runs", f"{settings.dataset}_{config.arch}_{config.latent_dim}d"), 1
    while (folder := Path(f"{name}_{n}") if n > 1 else name).exists():
        n += 1
    return folder
