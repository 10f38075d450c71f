"""A page with a map of the latent space: the decoder draws a digit for each point.

python3 vis/explorer/main.py --model_params pretrained/vae_mnist.pth --save_dir site

explorer.html runs offline. It contains the test images, their posteriors and the network, which
JavaScript evaluates. Encoder weights are stored in 8 bits, all others in 16. The map shows
u ~ N(0, I), which the prior maps to z.
"""

import base64
import gzip
import json
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from layers import Residual
from model import IMAGE_SHAPE
from utils import cli
from utils.cli import UserError
from vis.common import DIGIT_COLOURS, EncodedTestSet, NotApplicable, make_parser, save_file
from vis.posterior.true_posterior import measure, modes

PAGE = Path(__file__).with_name("page.html")  # the files in PARTS fill its @@name@@ slots
PARTS = ("style.css", "network.js", "worker.js", "payload.js", "map.js", "card.js")
MAX_BYTES = 10_000_000  # limit of explorer.html, so that mail and phones can handle it
FARTHEST = 2  # limit on panning and zooming out, as a multiple of `reach`
N_CHOSEN_FROM = 30  # test images from which the presets are chosen


class Payload(bytearray):
    """The page's concatenated binary arrays. `put` adds an array and returns its position."""

    def put(self, tensor: Tensor, dtype: torch.dtype) -> dict:
        array = tensor.to(dtype).flatten().numpy()
        place = {"dtype": str(array.dtype), "offset": len(self), "length": len(array)}
        self.extend(array.astype(array.dtype.newbyteorder("<")).tobytes())
        return place

    def put_weights(self, layer: nn.Linear | nn.Conv2d, dtype: torch.dtype) -> dict:
        """Adds the weights (outputs, inputs, ...) as int16 or int8 and the biases as float32."""
        # 16-bit integers are more accurate than half precision, which spends 5 bits on an exponent.
        largest = layer.weight.flatten(1).abs().amax(dim=1)  # largest weight of each output
        scale = largest.clamp(min=1e-30) / torch.iinfo(dtype).max
        integers = (layer.weight.flatten(1) / scale[:, None]).round()
        place = {"outputs": layer.weight.shape[0], "inputs": layer.weight.shape[1]}
        place |= {"weight": self.put(integers, dtype), "scale": self.put(scale, torch.float32)}
        return place | {"bias": None if layer.bias is None else self.put(layer.bias, torch.float32)}


def list_layers(modules: nn.Sequential, payload: Payload, dtype: torch.dtype) -> list[dict]:
    """The layers in the page's format, whose flat arrays need no Flatten or Unflatten."""
    layers, side = [], IMAGE_SHAPE[-1]  # side: width of the feature maps
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
            case nn.Conv2d(kernel_size=(1 | 3 as size, _)):
                layer = {"op": f"conv{size}x{size}"} | payload.put_weights(module, dtype)
            case Residual(linear=nn.Identity()):
                layer = {"op": "residual", "layers": list_layers(module.f, payload, dtype)}
            case Residual():  # a linear map plus an MLP
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
                raise UserError(f"the page cannot run a layer of type {type(module).__name__}.")
        layers.append(layer)
    return layers


def presets(test_set: EncodedTestSet, n_images: int) -> list[int]:
    """Three test images: one with two posterior modes, one with a poor fit, one with a good fit."""
    found, kl = measure(test_set, list(range(min(n_images, N_CHOSEN_FROM))))
    second = [sorted((0.0, *modes(posterior)))[-2] for posterior in found]  # masses of second modes
    # The best fit among the posteriors whose second mode holds at least a quarter of the mass.
    twofold = min(range(len(found)), key=lambda i: (-min(second[i], 0.25), kl[i]))
    return [twofold, kl.argmax().item(), kl.argmin().item()]


def make_page(test_set: EncodedTestSet, n_images: int, with_encoder: bool) -> bytes:
    """The content of explorer.html, with the first `n_images` test images."""
    payload, model, images = Payload(), test_set.model, test_set.images
    reach = max(3.3, 1.1 * test_set.u.abs().quantile(0.999).item())  # covers all u but outliers
    flow = [
        {"mask": coupling.mask.tolist(), "layers": list_layers(coupling.net, payload, torch.int16)}
        for coupling in model.prior.couplings
    ]
    content = {
        "name": test_set.name,
        "symbol": test_set.symbol,
        "colours": DIGIT_COLOURS,
        "plane": test_set.plane,
        "sliders": [d for d in test_set.by_kl if test_set.kl[d] >= 0.05 and len(test_set.kl) > 2],
        "kl": test_set.kl.tolist(),  # nats; dimensions below 0.05 have no slider
        "reach": reach,  # half the initial map's shorter side, and slider limit
        "farthest": FARTHEST,
        "presets": presets(test_set, n_images) if len(test_set.kl) == 2 and n_images > 2 else [],
        "binary": test_set.binarize == "dynamic",  # if so, drawings are binarised
        "images": payload.put(images[:n_images], torch.uint8),
        "labels": payload.put(test_set.labels[:n_images], torch.uint8),
        "mu": payload.put(test_set.mu[:n_images], torch.float32),
        "logvar": payload.put(test_set.logvar[:n_images], torch.float32),
        "points": payload.put(test_set.u[:n_images, test_set.plane], torch.float32),
        "decoder": list_layers(model.decoder, payload, torch.int16),
        "outputBias": payload.put(model.output_bias, torch.float32),
        "couplings": flow,
        "encoder": list_layers(model.encoder, payload, torch.int8) if with_encoder else None,
    }
    page = PAGE.read_text(encoding="utf-8")
    for name in PARTS:
        page = page.replace(f"@@{name}@@", PAGE.with_name(name).read_text(encoding="utf-8"))
    page = page.replace("@@PAYLOAD@@", base64.b64encode(gzip.compress(payload, mtime=0)).decode())
    text = json.dumps(content).replace("<", "\\u003c")  # so that no text ends the script element
    return page.replace("@@CONTENT@@", text).encode()


def main() -> None:
    parser = make_parser("Writes explorer.html, a page for exploring the latent space.")
    parser.add_argument("--n_images", type=cli.number(1, 10_000), default=10_000, help="to include")
    args = parser.parse_args()
    test_set, n_images = EncodedTestSet(args), args.n_images
    if len(test_set.kl) == 1:
        raise NotApplicable("the map needs at least 2 latent dimensions; use vis/traversal.")
    page = make_page(test_set, n_images, with_encoder=True)
    if len(page) > MAX_BYTES:
        page = make_page(test_set, n_images, with_encoder=False)
        print("note: the encoder does not fit into the page, so there is no drawing pad.")
    if len(page) > MAX_BYTES:
        raise UserError(f"the page exceeds {MAX_BYTES:,} bytes; use a smaller --n_images.")
    save_file(args.save_dir / "explorer.html", lambda file: file.write(page))


if __name__ == "__main__":
    cli.run(main)
