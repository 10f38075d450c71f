"""The latent space as one page: move over the map of the test set and the decoder answers.

python3 vis/explorer/main.py --model_params pretrained/vae_mnist.pth --save_dir figures

explorer.html runs offline. It carries the test images, their posteriors and the network itself, as
layers that the page interprets: the decoder with 16 bits for each weight, the encoder with 8. With
two dimensions it integrates p(x|z) p(z) over z too, and shades the map by the true posterior.
"""

import base64
import copy
import gzip
import json
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from estimators import active_units
from layers import LinearPlusMLP, Residual
from model import IMAGE_SHAPE
from utils import cli
from utils.cli import UserError
from utils.device import rng
from vis.common import DIGIT_COLOURS, EncodedTestSet, make_parser, save_file

PAGE = Path(__file__).with_name("page.html")  # where each of these names gives way to its file
PARTS = ("style.css", "network.js", "posterior.js", "payload.js", "map.js")
MAX_BYTES = 10_000_000  # of the page: what a mail or a phone takes without complaint
MAX_PIXEL_ERROR = 1.9 / 255  # of any pixel that the page decodes, against the model's
N_DRAWS = 64  # of the page's estimate of a KL divergence that has no closed form
FARTHEST = 2  # how far out the map can be moved and zoomed, in units of its first half-width


class Payload(bytearray):
    """The page's binary data: one array after another; `put` returns the place of each."""

    def put(self, tensor: Tensor, dtype: torch.dtype) -> dict:
        array = tensor.to(dtype).flatten().numpy()
        place = {"dtype": str(array.dtype), "offset": len(self), "length": len(array)}
        self.extend(array.astype(array.dtype.newbyteorder("<")).tobytes())
        return place

    def put_weights(self, layer: nn.Linear | nn.Conv2d, dtype: torch.dtype) -> dict:
        """The weights (outputs, inputs, ...) in int16 or int8, the few biases in float32."""
        integers, scale = to_integers(layer.weight, dtype)
        place = {"outputs": layer.weight.shape[0], "inputs": layer.weight.shape[1]}
        place |= {"weight": self.put(integers, dtype), "scale": self.put(scale, torch.float32)}
        return place | {"bias": None if layer.bias is None else self.put(layer.bias, torch.float32)}


def to_integers(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`weight` (outputs, inputs, ...) as whole numbers, and a scale for each output, in float32."""
    # In 16 bits this is closer than half precision, which spends five of them on an exponent.
    largest = weight.abs().amax(dim=tuple(range(1, weight.ndim)), keepdim=True)
    scale = largest.clamp(min=1e-30) / torch.iinfo(dtype).max
    return (weight / scale).round(), scale


def list_layers(modules: nn.Sequential, payload: Payload, dtype: torch.dtype) -> list[dict]:
    """The layers as the page knows them; its arrays are flat, so it needs no reshaping ones."""
    layers, side = [], IMAGE_SHAPE[-1]  # of the images that convolutions see
    for module in modules:
        match module:
            case nn.Flatten():
                continue
            case nn.Unflatten():
                side = module.unflattened_size[-1]
                continue
            case nn.SiLU():
                layer = {"op": "silu"}
            case nn.Linear():
                layer = {"op": "linear"} | payload.put_weights(module, dtype)
            case nn.Conv2d(kernel_size=(3, 3), padding=(1, 1), stride=(1, 1)):
                layer = {"op": "conv3x3"} | payload.put_weights(module, dtype)
            case nn.Conv2d(kernel_size=(1, 1), padding=(0, 0), stride=(1, 1)):
                layer = {"op": "conv1x1"} | payload.put_weights(module, dtype)
            case Residual():
                layer = {"op": "residual", "layers": list_layers(module.f, payload, dtype)}
            case LinearPlusMLP():
                branches = list_layers([module.linear, *module.f], payload, dtype)
                n_outputs = module.linear.out_features
                layer = {"op": "linearPlusMLP", "outputs": n_outputs, "layers": branches}
            case nn.PixelShuffle():
                side *= module.upscale_factor
                layer = {"op": "pixelShuffle", "factor": module.upscale_factor, "side": side}
            case nn.PixelUnshuffle():
                layer = {"op": "pixelUnshuffle", "factor": module.downscale_factor, "side": side}
                side //= module.downscale_factor
            case _:
                raise UserError(f"the page cannot carry a layer of type {type(module).__name__}.")
        layers.append(layer)
    return layers


def fixed_eps(n: int, latent_dim: int) -> Tensor:
    """Draws (n, L) from N(0, I), with exactly its means and variances: estimates err less."""
    eps = torch.randn(n, latent_dim, generator=rng(0))
    return (eps - eps.mean(dim=0)) / eps.std(dim=0, correction=0)


def map_frame(test_set: EncodedTestSet) -> tuple[Tensor, float]:
    """The middle (L,) and half the width of the first map and of every slider.

    Within are all posterior means but outliers, and 3 standard deviations of the prior.
    """
    centre = test_set.model.prior.from_normal(torch.zeros(1, len(test_set.kl)))[0]
    prior_std = test_set.model.prior.from_normal(fixed_eps(10_000, len(centre))).std(dim=0)
    reach = 1.1 * (test_set.mu - centre).abs().quantile(0.999)
    return centre, max(3 * prior_std.max().item(), reach.item())


def rounding_error(test_set: EncodedTestSet, seed: int) -> float:
    """The largest change of any decoded pixel, in [0, 1], by the 16 bits; z anywhere on the map."""
    rounded = copy.deepcopy(test_set)
    for layer in rounded.model.decoder.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            integers, scale = to_integers(layer.weight, torch.int16)
            layer.weight.data = integers * scale
    centre, reach = map_frame(test_set)
    z = (2 * torch.rand(2048, len(centre), generator=rng(seed)) - 1) * reach
    z[:, test_set.plane()] *= FARTHEST
    z += centre
    return (test_set.decode(z) - rounded.decode(z)).abs().max().item()


def make_page(test_set: EncodedTestSet, n_images: int, with_encoder: bool) -> bytes:
    """explorer.html with the first `n_images` test images."""
    payload, model, images = Payload(), test_set.model, test_set.images
    is_active, (centre, reach) = active_units(test_set.mu), map_frame(test_set)
    output_bias = {"op": "bias", "bias": payload.put(model.output_bias, torch.float32)}
    flow = [
        {"mask": coupling.mask.tolist(), "layers": list_layers(coupling.net, payload, torch.int16)}
        for coupling in getattr(model.prior, "couplings", ())
    ]
    eps = fixed_eps(N_DRAWS, len(centre))  # of the page's KL estimates
    content = {
        "name": test_set.name,
        "colours": DIGIT_COLOURS,
        "plane": test_set.plane(),
        "sliders": [d for d in test_set.by_kl if is_active[d]] if len(centre) > 2 else [],
        "kl": test_set.kl.tolist(),  # of each dimension, nats
        "centre": centre.tolist(),
        "reach": reach,
        "farthest": FARTHEST,
        "binary": bool(((images == 0) | (images == 255)).all()),  # then a drawing is binarised too
        "images": payload.put(images[:n_images], torch.uint8),
        "labels": payload.put(test_set.labels[:n_images], torch.uint8),
        "mu": payload.put(test_set.mu[:n_images], torch.float32),
        "logvar": payload.put(test_set.logvar[:n_images], torch.float32),
        "decoder": [*list_layers(model.decoder, payload, torch.int16), output_bias],
        "prior": {"couplings": flow, "eps": payload.put(eps, torch.float32)} if flow else None,
        "encoder": list_layers(model.encoder, payload, torch.int8) if with_encoder else None,
    }
    page = PAGE.read_text(encoding="utf-8")
    for name in PARTS:
        page = page.replace(f"@@{name}@@", PAGE.with_name(name).read_text(encoding="utf-8"))
    page = page.replace("@@PAYLOAD@@", base64.b64encode(gzip.compress(payload, mtime=0)).decode())
    text = json.dumps(content).replace("<", "\\u003c")  # so no text can end the script element
    return page.replace("@@CONTENT@@", text).encode()


def main() -> None:
    parser = make_parser("Writes explorer.html: latent space, test images and network in one page.")
    parser.add_argument("--n_images", type=cli.number(1, 10_000), default=10_000, help="to carry")
    args = parser.parse_args()
    test_set, n_images = EncodedTestSet(args), args.n_images
    if rounding_error(test_set, args.seed) > MAX_PIXEL_ERROR:
        raise UserError("in 16 bits this decoder's pixels change visibly; use fewer blocks.")
    half = max(1, n_images // 2)
    for with_encoder, n in ((True, n_images), (False, n_images), (False, half)):
        page = make_page(test_set, n, with_encoder)
        if len(page) <= MAX_BYTES:
            break
    else:
        raise UserError(f"the page exceeds {MAX_BYTES:,} bytes; use a smaller --n_images.")
    if not with_encoder:
        print(f"note: the page has {n:,} images and no drawing pad; the encoder does not fit.")
    save_file(args.save_dir / "explorer.html", page)


if __name__ == "__main__":
    cli.run(main)
