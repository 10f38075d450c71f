"""The latent space as one page: move over the map of the test set and the decoder answers, in the browser, offline.

python3 vis/explorer/main.py --model_params pretrained/vae_mnist.pth --save_dir figures

explorer.html carries the test images, their posteriors and the network itself, as a list of layers that the page
interprets: the decoder with 16 bits for each weight, the encoder with 8.
"""

import base64
import copy
import gzip
import json
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import cli
import torch
from errors import UserError
from torch import Tensor, nn

from evaluate import ACTIVE_VARIANCE
from model import IMAGE_SHAPE, Linear, Residual, Shortcut
from prior import FlowPrior
from vis.common import DIGIT_COLOURS, Subject, load_subject, make_parser

PAGE = Path(__file__).with_name("page.html")  # where each of the names below gives way to a file
PARTS = {"@@STYLE@@": "style.css", "@@NETWORK@@": "network.js", "@@MAP@@": "map.js"}
MAX_BYTES = 10_000_000  # of the page: what a mail or a phone takes without complaint
MAX_PIXEL_ERROR = 1.9 / 255  # of any pixel that the page decodes, against the model's
N_DRAWS = 64  # of the page's estimate of a KL divergence that has no closed form
FARTHEST = 2  # how far out the map can be moved and zoomed, in units of its first half-width


class Cargo:
    """The page's binary data: arrays one behind the other. The page finds each by what `put` returns."""

    def __init__(self):
        self.data = bytearray()

    def put(self, tensor: Tensor, dtype: torch.dtype) -> dict:
        array = tensor.detach().cpu().to(dtype).contiguous().flatten().numpy()
        place = {"dtype": str(array.dtype), "offset": len(self.data), "length": len(array)}
        self.data += array.astype(array.dtype.newbyteorder("<")).tobytes()
        return place

    def put_weights(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> dict:
        """`weight` (outputs, inputs, ...), in int16 or int8; biases are too few to be worth rounding."""
        integers, scale = to_integers(weight, dtype)
        place = {"outputs": weight.shape[0], "inputs": weight.shape[1]}
        place |= {"weight": self.put(integers, dtype), "scale": self.put(scale, torch.float32)}
        return place | {"bias": None if bias is None else self.put(bias, torch.float32)}


def to_integers(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`weight` (outputs, inputs, ...) as whole numbers of `dtype`, still in float32, times a scale for each output.

    In 16 bits this is closer than half precision, which spends five of them on an exponent.
    """
    scale = (
        weight.detach().flatten(1).abs().amax(dim=1).clamp(min=1e-30) / torch.iinfo(dtype).max
    )  # (outputs,)
    scale = scale.view(-1, *[1] * (weight.ndim - 1))
    return (weight.detach() / scale).round(), scale


def list_layers(modules: nn.Sequential, cargo: Cargo, dtype: torch.dtype) -> list[dict]:
    """The layers as the page's interpreter knows them. It keeps arrays flat, so reshaping is nothing to it."""
    layers, side = [], IMAGE_SHAPE[-1]  # of the images that convolutions see
    for module in modules:
        match module:
            case nn.Flatten():
                continue
            case nn.Unflatten():
                side = module.unflattened_size[-1]
                continue
            case nn.Linear():
                weight = (
                    module.weight.T if isinstance(module, Linear) else module.weight
                )  # ours stores the transpose
                layer = {"op": "linear"} | cargo.put_weights(weight, module.bias, dtype)
            case nn.Conv2d(
                kernel_size=(3, 3), padding=(1, 1), stride=(1, 1), dilation=(1, 1), groups=1
            ):
                layer = {"op": "conv3x3"} | cargo.put_weights(module.weight, module.bias, dtype)
            case nn.Conv2d(kernel_size=(1, 1), padding=(0, 0), stride=(1, 1), groups=1):
                layer = {"op": "conv1x1"} | cargo.put_weights(module.weight, module.bias, dtype)
            case Residual():
                layer = {"op": "residual", "layers": list_layers(module.f, cargo, dtype)}
            case Shortcut():
                branches = list_layers([module.linear, *module.f], cargo, dtype)
                layer = {
                    "op": "shortcut",
                    "outputs": module.linear.out_features,
                    "layers": branches,
                }
            case nn.SiLU():
                layer = {"op": "silu"}
            case nn.PixelShuffle():
                side *= module.upscale_factor
                layer = {"op": "pixelShuffle", "factor": module.upscale_factor, "side": side}
            case nn.PixelUnshuffle():
                layer = {"op": "pixelUnshuffle", "factor": module.downscale_factor, "side": side}
                side //= module.downscale_factor
            case _:
                raise UserError(
                    f"the page cannot carry a layer of type {type(module).__name__}; use --arch mlp or conv."
                )
        layers.append(layer)
    return layers


def fixed_eps(n: int, latent_dim: int) -> Tensor:
    """Draws from N(0, I), (n, L), with exactly its mean and variances: for a flow that does nothing the KL has no error."""
    eps = torch.randn(n, latent_dim, generator=cli.rng(0))
    return (eps - eps.mean(dim=0)) / eps.std(dim=0, correction=0)


def map_plane(subject: Subject) -> list[int]:
    """The two dimensions of the map: those with the highest KL."""
    return [0, 1] if subject.mu.shape[1] == 2 else subject.dimensions_by_kl()[:2]


def map_centre(subject: Subject) -> Tensor:
    """The middle of the map at first, and of every slider: what the prior makes of u = 0. (L,)"""
    return subject.from_normal(torch.zeros(1, subject.mu.shape[1]))[0]


def map_reach(subject: Subject) -> float:
    """Half the width of both: but for outliers all posterior means, and 3 prior deviations."""
    prior_std = subject.from_normal(fixed_eps(10_000, subject.mu.shape[1])).std(
        dim=0, correction=0
    )  # (L,)
    return max(
        3 * prior_std.max().item(),
        1.1 * (subject.mu - map_centre(subject)).abs().quantile(0.999).item(),
    )


def rounding_error(subject: Subject, seed: int) -> float:
    """The largest change of any decoded pixel, in [0, 1], by the 16 bits; z anywhere on the map."""
    rounded = copy.deepcopy(subject.model)
    for layer in rounded.decoder.modules():
        if isinstance(layer, Linear | nn.Conv2d):
            weight = (
                layer.weight.data.T if isinstance(layer, Linear) else layer.weight.data
            )  # a view
            integers, scale = to_integers(weight, torch.int16)
            weight.copy_(integers * scale)
    z = (2 * torch.rand(2048, subject.mu.shape[1], generator=cli.rng(seed)) - 1) * map_reach(
        subject
    )
    z[:, map_plane(subject)] *= FARTHEST
    z += map_centre(subject)
    return (subject.decode(z) - replace(subject, model=rounded).decode(z)).abs().max().item()


def list_prior(prior: nn.Module, latent_dim: int, cargo: Cargo) -> dict | None:
    """The couplings of a flow, and the eps for the page's estimates; a normal prior needs nothing."""
    if not isinstance(prior, FlowPrior):
        return None
    couplings = [list_layers(coupling.net, cargo, torch.int16) for coupling in prior.couplings]
    return {"couplings": couplings, "eps": cargo.put(fixed_eps(N_DRAWS, latent_dim), torch.float32)}


def make_page(subject: Subject, n_images: int, with_encoder: bool) -> bytes:
    """explorer.html with the first `n_images` test images."""
    cargo, by_kl = Cargo(), subject.dimensions_by_kl()
    active = subject.mu.var(dim=0, correction=0) > ACTIVE_VARIANCE
    output_bias = {"op": "bias", "bias": cargo.put(subject.model.output_bias, torch.float32)}
    content = {
        "name": subject.name,
        "colours": DIGIT_COLOURS,
        "plane": map_plane(subject),
        "sliders": [d for d in by_kl if active[d]] if len(by_kl) > 2 else [],
        "kl": subject.kl.tolist(),  # of each dimension, nats
        "centre": map_centre(subject).tolist(),
        "reach": map_reach(subject),
        "farthest": FARTHEST,
        "binary": bool(
            ((subject.images == 0) | (subject.images == 255)).all()
        ),  # then a drawing is binarised too
        "images": cargo.put(subject.images[:n_images], torch.uint8),
        "labels": cargo.put(subject.labels[:n_images], torch.uint8),
        "mu": cargo.put(subject.mu[:n_images], torch.float32),
        "logvar": cargo.put(subject.logvar[:n_images], torch.float32),
        "decoder": [*list_layers(subject.model.decoder, cargo, torch.int16), output_bias],
        "prior": list_prior(subject.model.prior, subject.mu.shape[1], cargo),
        "encoder": list_layers(subject.model.encoder, cargo, torch.int8) if with_encoder else None,
    }
    page = PAGE.read_text(encoding="utf-8")
    for place, name in PARTS.items():
        page = page.replace(place, PAGE.with_name(name).read_text(encoding="utf-8"))
    page = page.replace("@@CARGO@@", base64.b64encode(gzip.compress(cargo.data, mtime=0)).decode())
    text = json.dumps(content).replace("<", "\\u003c")  # so no text can end the script element
    return page.replace("@@CONTENT@@", text).encode()


def main() -> None:
    parser = make_parser(
        "Writes explorer.html: the latent space, its test images and the network in one page."
    )
    parser.add_argument(
        "--n_images",
        type=cli.integer(1, 10_000),
        default=10_000,
        help="the first so many test images",
    )
    args = parser.parse_args()
    subject = load_subject(args)
    if subject.mu.shape[1] == 1:
        raise UserError(
            "the explorer's map needs at least 2 latent dimensions, this model has 1; see vis/traversal/main.py."
        )
    if rounding_error(subject, args.seed) > MAX_PIXEL_ERROR:
        raise UserError(
            "with 16 bits for each weight this decoder's pixels change visibly; use a model of fewer blocks."
        )
    for with_encoder, n_images in (
        (True, args.n_images),
        (False, args.n_images),
        (False, max(1, args.n_images // 2)),
    ):
        page = make_page(subject, n_images, with_encoder)
        if len(page) <= MAX_BYTES:
            break
    else:
        size = f"{len(page) / 1e6:.1f} MB where {MAX_BYTES / 1e6:.0f} are allowed"
        raise UserError(
            f"the page would have {size}; use a smaller --n_images or a model of less --width."
        )
    if not with_encoder:
        print(
            "note: the encoder does not fit into the page, so it has no drawing pad; use a model of less --width for it."
        )
    if n_images < args.n_images:
        print(f"note: nor do all images; the page carries {n_images:,}.")
    path = args.save_dir / "explorer.html"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(page)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); choose another --save_dir."
        ) from error
    print(path)


if __name__ == "__main__":
    cli.run(main)
