"""The pre-trained models by `torch.hub.load`, in a caller's process that has modules of its own."""

from conftest import ROOT, run_script

PROGRAM = """
import copy, importlib, pickle, sys
import torch
OWN = ("utils", "model", "utils.photos", "data", "loss")

def own(names):
    for name in names:
        assert importlib.import_module(name).OF == f"the caller's {name}"

own(OWN[:2])  # imported before the models, the others after them
path_before = [*sys.path]
load = lambda name, **how: torch.hub.load(sys.argv[1], name, source="local", trust_repo=True, **how)
x = torch.rand(2, 1, 28, 28)
names = ("vae_mnist", "vae_mnist_2d_dynamic", "vae_mnist_40d", "vae_mnist_40d_flow")
models = [load(name) for name in names]
for name, model in zip(names, models, strict=True):
    print(name, model.config.latent_dim, model.config.prior, model.training, *model.sample(3).shape)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(twin) is type(model) and twin.config == model.config
        assert torch.equal(twin.decode(twin.encode(x)[0]), model.decode(model.encode(x)[0]))
    model.encode(model.sample(2))[0].sum().backward()
assert sys.path == path_before
assert not any(hasattr(sys.modules[name], "VAE") for name in OWN if name in sys.modules)
own(OWN)
torch.cuda.is_available = lambda: False
try:
    load("vae_mnist", device="cuda")
except Exception as error:
    print(error)
"""


def test_the_models_load_beside_modules_of_the_same_names(tmp_path):
    """Those that the caller imported before, and those that are imported after."""
    (tmp_path / "utils").mkdir()
    for name in ("utils/__init__", "utils/photos", "model", "data", "loss"):
        text = f'OF = "the caller\'s {name.removesuffix("/__init__").replace("/", ".")}"\n'
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "program.py").write_text(PROGRAM)
    done = run_script(tmp_path / "program.py", ROOT, cwd=tmp_path, PYTHONPATH="")
    assert done.returncode == 0, done.stderr
    *loaded, refusal = done.stdout.splitlines()
    assert loaded == [
        "vae_mnist 2 normal False 3 1 28 28",
        "vae_mnist_2d_dynamic 2 normal False 3 1 28 28",
        "vae_mnist_40d 40 normal False 3 1 28 28",
        "vae_mnist_40d_flow 40 flow False 3 1 28 28",
    ]
    assert refusal.startswith("device cuda is not available")
