"""Runs the project on the CPU and on a pretended GPU; prints what both computed as JSON.

The GPU is PyTorch's private-use backend under the name "fake". Its tensors hold CPU tensors and
compute with them, but refuse what CUDA or MPS would refuse: operands on two devices, a random
generator of the other device, float64, and an operator that MPS lacks.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from utils import cli, device

backend_registration._setup_privateuseone_for_python_backend("fake")
CPU, GPU = torch.device("cpu"), torch.device("fake:0")
FLAGS = (
    "--prior flow --n_importance_samples 2 --width 32 --n_blocks 2 --kl_warmup 3",
    "--arch conv --width 4 --n_blocks 2 --deform 0.1 --binarize dynamic --recon_loss mse",
)
MARK = 2**40  # in the seed of a generator on the GPU; its stream depends on the lower 32 bits
cpu_rng = device.rng


def marked_rng(*seeds: int, device: torch.device | str = "cpu") -> torch.Generator:
    """`utils.device.rng`, on the CPU in any case."""
    rng = cpu_rng(*seeds)
    return rng.manual_seed(rng.initial_seed() + MARK * (str(device) == str(GPU)))


device.rng = marked_rng
import data  # noqa: E402  (they take `device.rng` with them)
import estimators  # noqa: E402
import model  # noqa: E402
import train  # noqa: E402

model.N_PAIRS = 1  # for speed
IMAGES = {split: data.load_mnist(cli.DATA_DIR, split)[0][:24] for split in ("train", "val", "test")}


class FakeTensor(torch.Tensor):
    """A tensor on the GPU. `raw` is the CPU tensor that it holds."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __new__(cls, raw: torch.Tensor):
        assert raw.dtype != torch.float64, "MPS has no float64"
        how = {"strides": raw.stride(), "dtype": raw.dtype, "device": GPU}
        tensor = torch.Tensor._make_wrapper_subclass(cls, raw.shape, **how)
        tensor.raw = raw
        return tensor

    @classmethod
    def __torch_dispatch__(cls, op, types, args=(), kwargs=None):
        return compute(op, args, kwargs or {})

    @property
    def data(self):
        return FakeTensor(self.raw.detach())

    @data.setter
    def data(self, new: "FakeTensor"):  # as Module.to does
        self.raw = new.raw

    def __reduce_ex__(self, protocol: int):  # in a file, whose reader maps it to the CPU
        return self.raw.__reduce_ex__(protocol)


def compute(op, args: tuple, kwargs: dict):
    """One operator of PyTorch, after the checks that a GPU would make."""
    name, leaves = op._schema.name.removeprefix("aten::"), tree_leaves((args, kwargs))
    # A scalar on the CPU may meet tensors on the GPU, but not in a fused optimizer.
    joined = [t for t in leaves if isinstance(t, torch.Tensor) and (t.dim() or name[:2] == "_f")]
    joined += [t for t in leaves if isinstance(t, FakeTensor)]
    devices = [t.device for t in joined]
    may_mix = "copy" in name or ("index" in name and devices[0] == GPU)
    assert may_mix or len(set(devices)) < 2, f"{name} of tensors on two devices"
    target = kwargs.get("device")
    on_gpu = (target or CPU).type == GPU.type if target else GPU in devices
    for rng in (leaf for leaf in leaves if isinstance(leaf, torch.Generator)):
        assert (rng.initial_seed() >= MARK) == on_gpu, f"{name} with the other device's generator"
    assert name != "special_ndtri", f"MPS lacks {name}"
    kwargs |= {"device": CPU} if target else {}
    args_, kwargs_ = tree_map_only(FakeTensor, lambda t: t.raw, (args, kwargs))
    result = op(*args_, **kwargs_)
    if name.endswith("_"):  # in place
        return args[0] if op._schema.returns else None
    return tree_map_only(torch.Tensor, FakeTensor, result) if on_gpu else result


class Everywhere(TorchDispatchMode):
    """Sees operators without operands, too: torch.zeros(3, device=GPU)."""

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        return compute(op, args, kwargs or {})


def epoch(flags: str, where: torch.device, folder: Path) -> tuple[train.Run, list[float]]:
    """Trains, validates and saves one epoch of a tiny run, or resumes it; gives its metrics."""
    words = f"{flags} --batch_size 16 --n_epochs 2 --device cpu --precision fp32"
    resume = f"--resume {folder}/last.pth --device cpu"
    args = train.parse_flags((resume if (folder / "last.pth").exists() else words).split())
    args.device, args.save_dir = where, folder
    images, val_images = (IMAGES[split].to(where) for split in ("train", "val"))
    run = train.build(args, images)
    train.run_epoch(run, images, val_images, args)
    train.save(run, args)
    return run, [value for name, value in run.metrics[-1].items() if name != "seconds"]


def evaluations(model: train.VAE, where: torch.device) -> list[float]:
    """What evaluate.py computes with each estimator."""
    images = IMAGES["test"]
    q = estimators.posteriors(model, images)
    nll = estimators.importance_weighted_nll(model, images, q, 3)
    exact = estimators.grid_nll(model, images[:2], 17)
    samples = model.sample(3, device.rng(1, device=where)).sum()
    kl = estimators.kl_of_dimensions(q, model.config.prior).cpu()
    return [*nll.tolist(), *exact.tolist(), *kl.tolist(), samples.item()]


def main() -> None:
    results, train.SAVE_SECONDS = [], -1
    with Everywhere():
        for flags in FLAGS:
            for where in (CPU, GPU):
                with TemporaryDirectory() as folder:
                    _, metrics = epoch(flags, where, Path(folder))
                    run, more = epoch(flags, where, Path(folder))
                results.append(metrics + more + evaluations(run.average, where))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
