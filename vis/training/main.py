"""How the latent space forms: trains a two-dimensional model and films it.

python3 vis/training/main.py
python3 vis/training/main.py --n_epochs 14 --seconds --frames frames

Left, the posterior means of the first 2,000 test images; right, the same plane, decoded. The
-ELBO is that of the first 1,000 validation images. The plane is one of z, or with a flow of
u ~ N(0, I), of which the flow makes z. The run is that of train.py with the same flags.
"""

import io
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from utils import cli
from utils.flags import Settings, add_run_flags, chosen_config, chosen_settings
from utils.images import tile

import numpy as np
import torch
from matplotlib.colors import to_rgb
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from data import fixed_binarization, load_mnist
from estimators import posteriors
from model import VAE
from optimizer import AdamW
from train import build, train_one_epoch, validate
from vis.common import DIGIT_COLOURS, plane_grid, plt, save_file, scatter_digits

N_TEST, N_VAL = 2000, 1000  # images that each frame looks at
N_POWERS = 80  # of which the small ones round to the same steps: about 60 frames remain
N_CELLS, LIMIT = 13, 3.5  # digits along each axis of the plane, and where it ends
FRAME_MS, LAST_FRAME_MS = 100, 2000
WIDTH, HEIGHT, EDGES = 830, 440, (34, 452)  # pixels: the picture, the left of its two squares
SIDE = 28 * N_CELLS  # of a square: a pixel of the screen is one of a digit
N_GREYS = 16


class Frame(NamedTuple):
    """What there is to see after so many steps."""

    step: int
    seconds: float  # of training
    neg_elbo: float  # nats per validation image
    u: Tensor  # (N_TEST, 2): the posterior means of the test images
    plane: Tensor  # (N_CELLS * N_CELLS, 1, 28, 28): pixel means


class Camera(AdamW):
    """AdamW that calls `look` with the number of steps so far, before those that are `moments`.

    So train.py's loop is filmed as it is, and seen with the averaged weights that it validates.
    """

    def __init__(self, model: VAE, weight_decay: float, moments: set[int], look: Callable):
        super().__init__(model.parameters(), model.encoder.parameters(), weight_decay)
        self.moments, self.look = moments, look

    def step(self, lr: float, slow_lr: float) -> None:
        if self.n_steps in self.moments:
            with self.averaged():
                self.look(self.n_steps)
        super().step(lr, slow_lr)


def moments(n_steps: int) -> set[int]:
    """Steps 0, 1, 2, 3, ... to `n_steps`, evenly spaced in their logarithm."""
    return {0} | {round(n_steps ** (i / N_POWERS)) for i in range(N_POWERS + 1)}


@torch.inference_mode()
def see(model: VAE, test_images: Tensor) -> tuple[Tensor, Tensor]:
    """The posterior means (N, 2) of test images (N, 1, 28, 28), and the plane, decoded."""
    mu, _ = posteriors(model, test_images)
    u, _ = model.prior.to_normal(mu.float().to(model.device))
    centres = (torch.arange(N_CELLS) + 0.5) * (2 * LIMIT / N_CELLS) - LIMIT
    z = model.prior.from_normal(plane_grid(centres).flatten(0, 1).to(model.device))
    return u.cpu(), torch.sigmoid(model.decode(z)).cpu()


def film(model: VAE, settings: Settings, train: Tensor, val: Tensor, test: Tensor) -> list[Frame]:
    """Trains the model on the images `train`; `val` and `test` are looked at."""
    n_steps = settings.n_epochs * math.ceil(len(train) / settings.batch_size)
    frames, start, looking = [], time.perf_counter(), 0.0

    def look(step: int) -> None:
        nonlocal looking
        now = time.perf_counter()
        neg_elbo = validate(model, val, settings)["val_neg_elbo"]
        frames.append(Frame(step, now - start - looking, neg_elbo, *see(model, test)))
        looking += time.perf_counter() - now
        model.train()

    camera = Camera(model, settings.weight_decay, moments(n_steps), look)
    for epoch in tqdm(range(1, settings.n_epochs + 1), "training", leave=False, disable=None):
        train_one_epoch(model, camera, train, settings, epoch)
    with camera.averaged():
        look(n_steps)
    return frames


def draw(frame: Frame, labels: Tensor, clock: str) -> Image.Image:
    """One picture of the film, in which nothing moves but what the model does."""
    figure = plt.figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100)
    left, right = (
        figure.add_axes((x / WIDTH, 30 / HEIGHT, SIDE / WIDTH, SIDE / HEIGHT)) for x in EDGES
    )
    scatter_digits(left, frame.u, labels, size=6, alpha=1)
    plane = tile(frame.plane, N_CELLS).numpy()
    right.imshow(plane, "gray", vmin=0, vmax=1, extent=(-LIMIT, LIMIT) * 2)
    span = {"xlim": (-LIMIT, LIMIT), "ylim": (-LIMIT, LIMIT)}
    for axes in (left, right):
        axes.set(xticks=range(-3, 4), yticks=range(-3, 4), **span)
        axes.tick_params(labelsize=9)

    def write(x: float, text: str, **look) -> None:
        figure.text(x / WIDTH, 1 - 30 / HEIGHT, text, fontsize=13, **look)

    write(EDGES[0], f"step {frame.step:,}")
    for digit, colour in enumerate(DIGIT_COLOURS):
        write(EDGES[0] + SIDE - 18 * (10 - digit), str(digit), color=colour, weight="bold")
    write(EDGES[1], clock)
    write(EDGES[1] + 105, f"validation -ELBO {frame.neg_elbo:.1f} nats")
    figure.canvas.draw()
    picture = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    plt.close(figure)
    return picture


def palette() -> Image.Image:
    """Greys, and the digits' colours, pure and mixed with white: few, for a small file."""
    greys = np.linspace(0, 255, N_GREYS)[:, None].repeat(3, axis=1)
    digits = 255 * np.array([to_rgb(colour) for colour in DIGIT_COLOURS])
    mixed = [255 + share * (digits - 255) for share in (1, 0.65, 0.3)]
    image = Image.new("P", (1, 1))
    image.putpalette(np.concatenate((greys, *mixed)).round().astype(np.uint8).tobytes())
    return image


def gif(pictures: list[Image.Image]) -> bytes:
    """An animation that holds its last picture, and then begins again."""
    colours, dither = palette(), Image.Dither.NONE
    first, *others = (picture.quantize(palette=colours, dither=dither) for picture in pictures)
    durations = [FRAME_MS] * len(others) + [LAST_FRAME_MS]
    content = io.BytesIO()
    first.save(content, "GIF", save_all=True, append_images=others, duration=durations, loop=0)
    return content.getvalue()


def main() -> None:
    parser = cli.parser("Trains a two-dimensional model and films its latent space.")
    add_run_flags(parser)
    parser.set_defaults(n_epochs=9)
    add = parser.add_argument
    add("--save_dir", type=Path, default=Path("figures"), help="folder for training.gif")
    add("--frames", type=Path, metavar="DIR", help="write each frame as a PNG, too")
    add("--seconds", action="store_true", help="show seconds: no two films are then the same")
    args = parser.parse_args()
    config, settings = chosen_config(args), chosen_settings(args)
    train, _ = load_mnist(args.data_dir, "train", settings.dataset)
    train = train[: settings.n_train].to(args.device)
    val, _ = load_mnist(args.data_dir, "val", settings.dataset)
    val = fixed_binarization(val, settings.binarize)[:N_VAL].to(args.device)
    test, labels = load_mnist(args.data_dir, "test", settings.dataset)
    test = fixed_binarization(test, settings.binarize)[:N_TEST].to(args.device)
    model, _, _ = build(config, settings, train, None)

    frames = film(model, settings, train, val, test)
    steps_per_epoch = math.ceil(len(train) / settings.batch_size)
    pictures = []
    for frame in tqdm(frames, "drawing", leave=False, disable=None):
        epochs = f"epoch {frame.step / steps_per_epoch:.1f}"
        clock = f"{frame.seconds:.1f} s" if args.seconds else epochs
        pictures.append(draw(frame, labels[:N_TEST], clock))
        if args.frames:
            content = io.BytesIO()
            pictures[-1].save(content, "PNG")
            save_file(args.frames / f"step_{frame.step:06d}.png", content.getvalue())
    save_file(args.save_dir / "training.gif", gif(pictures))


if __name__ == "__main__":
    cli.run(main)
