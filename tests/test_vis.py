"""The figures: their contents and places, identical bytes at every run, pictures of one's own."""

import copy
import importlib
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, random_model, refusal, run_script, save_model
from PIL import Image
from torch import Tensor

from data import SPLITS, binarize, load_mnist
from estimators import exact_nll
from model import VAE
from train import build, parse_flags, train_one_epoch
from utils.cli import DATA_DIR, ROOT, UserError
from utils.images import read_image, save_grid
from vis import common
from vis.curves.main import read_metrics
from vis.encoder_output.main import principal_components
from vis.interpolation.main import linear, spherical
from vis.posterior import main as posterior
from vis.training import main as training

N_TEST = 1000  # test images that a figure in this process sees


@pytest.fixture
def draw(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable:
    """Draws a figure of a checkpoint in this process; returns the arguments of draw_grid."""

    def run(name: str, model_params: Path, flags: str = "") -> SimpleNamespace:
        figure, drawn = importlib.import_module(f"vis.{name}.main"), SimpleNamespace()

        def draw_grid(images, n_columns, title, extent=None):
            drawn.images, drawn.n_columns, drawn.extent = images, n_columns, extent
            return common.draw_grid(images, n_columns, title, extent)

        paths = ["--model_params", str(model_params), "--save_dir", str(tmp_path / "figures")]
        with monkeypatch.context() as patch:
            patch.setattr(figure, "draw_grid", draw_grid, raising=False)
            patch.setattr("sys.argv", ["main.py", *paths, "--device=cpu", *flags.split()])
            patch.setitem(SPLITS, "test", ("t10k", 10_000, slice(0, N_TEST)))
            figure.main()
        return drawn

    return run


@torch.no_grad()
def decoded(model: VAE, z: Tensor) -> Tensor:
    """z (n, L) -> pixel means (n, 1, 28, 28)."""
    return torch.sigmoid(model.decode(z))


@torch.no_grad()
def encoded(model: VAE, index: int) -> Tensor:
    """The posterior mean (1, L) of a test image."""
    return model.encode(load_mnist(DATA_DIR, "test")[0][index, None] / 255)[0]


@torch.no_grad()
def moved(model: VAE, z: Tensor, changes: dict[int, float]) -> Tensor:
    """z (1, L) after some coordinates of u, which the prior maps to z, have got other values."""
    u = model.prior.to_normal(z)[0].clone()
    u[:, list(changes)] = torch.tensor(list(changes.values()))
    return model.prior.from_normal(u)


def test_the_plane_of_two_dimensions_is_as_one_looks_at_a_plot(draw, tmp_path):
    model = random_model()
    path = save_model(tmp_path / "model.pth", model)
    drawn = draw("decoder_output", path, "--latent_min -3 --latent_max 2 --n_cells 5")
    corners = torch.tensor([[-3.0, 2.0], [2.0, 2.0], [-3.0, -3.0], [2.0, -3.0]])
    truth = decoded(model, corners)
    assert min((truth[0] - other).abs().max() for other in truth[1:]) > 0.01
    torch.testing.assert_close(drawn.images[[0, 4, 20, 24]], truth)  # row by row from the top left
    assert drawn.n_columns == 5
    assert drawn.extent == pytest.approx((-3.625, 2.625, -3.625, 2.625))  # cells centred on their z


def test_the_quantiles_of_a_flow_go_through_it(draw, tmp_path):
    model = random_model(prior="flow")
    drawn = draw("decoder_output", save_model(tmp_path / "m.pth", model), "--quantile --n_cells 2")
    quartile = 0.6744898  # of N(0, 1)
    u = quartile * torch.tensor([[-1.0, 1.0], [1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
    with torch.no_grad():
        truth = decoded(model, model.prior.from_normal(u))
    assert (truth - decoded(model, u)).abs().max() > 0.01
    torch.testing.assert_close(drawn.images, truth)
    assert drawn.extent == (0, 1, 0, 1)


@pytest.mark.parametrize("prior", ["normal", "flow"])
def test_planes_and_traversals_of_more_dimensions_go_through_a_test_image(draw, tmp_path, prior):
    model = random_model(latent_dim=5, prior=prior)
    path = save_model(tmp_path / "model.pth", model)
    drawn = draw("decoder_output", path, "--latent_min -1 --n_cells 2 --image_index 3")
    z, matches = encoded(model, 3), 0
    for right in range(5):
        for up in range(5):
            corner = decoded(model, moved(model, z, {right: 4.0, up: -1.0}))  # the lower right
            matches += right != up and torch.allclose(drawn.images[3:], corner, atol=1e-5)
    assert matches == 1  # of all planes, it is one through this image

    rows = draw("traversal", path, "--n_steps 3 --image_index 3").images.view(5, 3, 1, 28, 28)
    torch.testing.assert_close(rows[:, 1], decoded(model, z).expand(5, 1, 28, 28))
    u = model.prior.to_normal(z)[0]
    at_the_right = [decoded(model, moved(model, z, {d: u[0, d].item() + 2})) for d in range(5)]
    found = [
        [torch.allclose(row[2:], truth, atol=1e-5) for truth in at_the_right].index(True)
        for row in rows
    ]
    assert sorted(found) == list(range(5))  # one row for each dimension


@pytest.mark.parametrize("name", ["vae_mnist_40d", "vae_mnist_40d_flow"])
def test_all_of_a_traversal_is_closer_to_a_digit_than_to_nothing(draw, name):
    path = ROOT / "pretrained" / f"{name}.pth"
    pixels = draw("traversal", path).images.flatten(1)
    assert len(pixels) == 130
    digits = load_mnist(DATA_DIR, "test")[0][:N_TEST].flatten(1) / 255

    def distance(pixels: Tensor) -> Tensor:
        return torch.cdist(pixels, digits).amin(dim=1) / pixels.norm(dim=1)

    assert distance(pixels).max() < 0.95
    assert distance(torch.full((1, 784), 0.3)).item() > 1  # grey is noticed


@pytest.mark.parametrize("mode", ["none", "dynamic"])
def test_reconstructions_stand_below_their_images(draw, tmp_path, mode):
    model = random_model()
    path = save_model(tmp_path / "model.pth", model, binarize=mode)
    save_grid(load_mnist(DATA_DIR, "test")[0][3:4], 1, tmp_path / "own.png")
    drawn = draw("reconstruct", path, f"--image {tmp_path / 'own.png'}")
    own = binarize(read_image(tmp_path / "own.png")[None], mode) / 255
    torch.testing.assert_close(drawn.images[:, :, :28], own)
    torch.testing.assert_close(drawn.images[:, :, 28:], decoded(model, model.encode(own)[0]))

    drawn = draw("reconstruct", path, "--n_images 12")
    assert (drawn.n_columns, len(drawn.images)) == (10, 20)
    assert drawn.images[12:].max() == 0
    mu, _ = model.encode(drawn.images[:12, :, :28])
    torch.testing.assert_close(drawn.images[:12, :, 28:], decoded(model, mu))


@pytest.mark.parametrize("prior", ["normal", "flow"])
def test_interpolations_begin_and_end_at_the_images_beside_them(draw, tmp_path, prior):
    model = random_model(latent_dim=5, prior=prior)
    path = save_model(tmp_path / "model.pth", model)
    rows = draw("interpolation", path, "--n_pairs 3 --n_steps 4").images.view(3, 6, 1, 28, 28)
    for image, neighbour in ((0, 1), (5, 4)):
        mu, _ = model.encode(rows[:, image])
        torch.testing.assert_close(rows[:, neighbour], decoded(model, mu))


def test_interpolations_turn_evenly_and_keep_their_length():
    start, end = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    for path in (linear, spherical):
        z = path(start, end, 5)
        torch.testing.assert_close((z[:, 0], z[:, -1]), (start, end))
    torch.testing.assert_close(linear(start, end, 3)[:, 1], (start + end) / 2)
    middle = spherical(start, end, 3)[:, 1]
    torch.testing.assert_close(middle.norm(dim=1), (start.norm(dim=1) + end.norm(dim=1)) / 2)
    torch.testing.assert_close(*(F.cosine_similarity(middle, side) for side in (start, end)))


def test_principal_components_are_those_of_a_singular_value_decomposition():
    scales = torch.tensor([1.0, 5, 2, 3, 0.1])
    values = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)) * scales
    coordinates, shares = principal_components(values)
    u, s, _ = np.linalg.svd((values - values.mean(dim=0)).numpy(), full_matrices=False)
    expected = np.abs(u[:, :2] * s[:2])
    np.testing.assert_allclose(np.abs(coordinates.numpy()), expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(shares.numpy(), s[:2] ** 2 / (s**2).sum(), rtol=1e-3)


@pytest.mark.parametrize("prior", ["normal", "flow"])
def test_a_posterior_figure_has_the_exact_evidence(draw, monkeypatch, tmp_path, prior):
    """It is that of exact_nll. A model of more dimensions is refused."""
    drawn, draw_panel = [], posterior.draw
    monkeypatch.setattr(posterior, "draw", lambda *args: [drawn.append(args), draw_panel(*args)])
    model = random_model(prior=prior)
    draw("posterior", save_model(tmp_path / "2d.pth", model), "--image_index 5 2")
    _, _, indices, found, kl = zip(*drawn, strict=True)
    assert indices == (5, 2)
    exact, _, _ = exact_nll(model, load_mnist(DATA_DIR, "test")[0][[5, 2]], 65)
    log_evidence = torch.tensor([p.log_evidence for p in found]).double()
    torch.testing.assert_close(log_evidence, -exact, atol=2e-3, rtol=0)
    assert min(kl) > 0
    with pytest.raises(common.NotApplicable, match="2 latent dimensions"):
        draw("posterior", save_model(tmp_path / "3d.pth", random_model(latent_dim=3)))


def test_the_parts_of_a_posterior_figure(monkeypatch, tmp_path):
    kl = torch.tensor([0.1, 9.0, 5.0, 0.2, 1.0, 6.0, 0.3, 0.4])
    assert posterior.choose(kl) == [1, 4, 0, 5, 7, 3]  # largest, median, smallest; twice
    mu, logvar = torch.tensor([0.5, -1.0]), torch.tensor([-2.0, -4.0])
    for model in (random_model(), random_model(prior="flow")):
        for radius, ring in enumerate(posterior.rings(model, mu, logvar), start=1):
            eps = (model.prior.from_normal(ring) - mu) * torch.exp(-0.5 * logvar)
            torch.testing.assert_close(eps.norm(dim=1), torch.full((200,), float(radius)))
    drawn = []
    monkeypatch.setattr(posterior, "save_figure", lambda figure, *_: drawn.append(figure))
    for kl in ([0.0, 1e-6, -1e-7], [1e-5, 0.5, 30.0]):  # a collapsed model, another
        posterior.draw_summary(torch.tensor([True, False, True]), torch.tensor(kl), "", tmp_path)
        assert sum(bar.get_height() for bar in drawn[-1].axes[0].patches) == len(kl)


def test_a_film_shows_the_average_of_the_training_of_train_py():
    images = load_mnist(DATA_DIR, "train")[0][:192]
    args = parse_flags([*TINY, "--n_epochs=12", "--batch_size=16"])  # 144 steps
    run, other = build(args, images), build(args, images)
    start = copy.deepcopy(run.average)
    seen = [(step, copy.deepcopy(model)) for step, model in training.film(run, images, args)]
    for epoch in range(1, 13):
        list(train_one_epoch(other.model, other.average, other.optimizer, images, args, epoch))
    pairs = ((run.model, other.model), (seen[0][1], start), (seen[-1][1], other.average))
    for ours, theirs in pairs:
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    assert [step for step, _ in seen] == [8 * k for k in range(19)]
    u, plane = training.see(start, images)
    torch.testing.assert_close(u, start.encode(images / 255)[0])
    inside = 3.5 - 3.5 / 13  # by half a cell
    corner = decoded(start, torch.tensor([[-inside, inside]]))
    torch.testing.assert_close(plane[:1], corner)


def test_the_moments_of_a_film_are_evenly_spaced_in_their_logarithm():
    steps = sorted(training.moments(882))
    assert 45 <= len(steps) <= 60
    assert all(step % 8 == 0 for step in steps[:-1])  # the average moves every 8th step
    np.testing.assert_allclose(np.diff(np.log(steps[-31::10])), np.log(882 / 8) / 8, 0.1)


def test_a_film_is_the_same_bytes_twice_and_holds_its_last_frame(monkeypatch, tmp_path):
    for folder in ("one", "two"):
        flags = ["--n_epochs=2", "--save_dir", str(tmp_path / folder)]
        monkeypatch.setattr("sys.argv", ["main.py", *TINY, *flags])
        training.main()
    one, two = (tmp_path / folder / "training.gif" for folder in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    with Image.open(one) as film:
        film.seek(film.n_frames - 1)
        assert film.info["duration"] == 2000


@pytest.mark.parametrize("content", [None, "", "a,b\n1,2\n", "epoch,train_recon_loss\n1,x\n"])
def test_a_file_that_is_no_metrics_csv_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "metrics.csv").write_text(content)
    with pytest.raises(UserError, match=re.escape("metrics.csv is not a metrics.csv")):
        read_metrics(tmp_path / "metrics.csv")


def test_every_figure_of_a_model_twice_with_the_same_bytes(tiny_run, tmp_path):
    for folder in ("one", "two"):
        where = tmp_path / folder
        where.mkdir()
        done = run_script("vis/all.py", "--model_params", tiny_run / "best.pth", cwd=where)
        assert done.returncode == 0, done.stderr
    files = sorted(path.name for path in (where / "figures").iterdir())
    assert len(files) == len(done.stdout.split()) == 11
    for name in files:
        one, two = (tmp_path / folder / "figures" / name for folder in ("one", "two"))
        assert one.read_bytes() == two.read_bytes(), name


def test_of_one_dimension_all_figures_but_those_of_a_plane_are_drawn(tmp_path):
    path = save_model(tmp_path / "model.pth", random_model(latent_dim=1))
    done = run_script("vis/all.py", "--model_params", path, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    left_out = [line.split()[0] for line in done.stdout.splitlines() if " left out: " in line]
    assert left_out == ["decoder_output", "decoder_output", "posterior", "explorer"]
    assert len(list((tmp_path / "figures").iterdir())) == len(done.stdout.splitlines()) - 4 == 6


def test_bad_input_to_a_figure_is_one_sentence(tiny_run, tmp_path):
    done = run_script("vis/all.py", "--model_params", "missing.pth", cwd=tmp_path)
    assert "missing.pth" in refusal(done)
    (tmp_path / "file").touch()
    flags = ("--model_params", tiny_run / "best.pth", "--save_dir", "file/folder")
    sentence = refusal(run_script("vis/samples/main.py", *flags, cwd=tmp_path))
    assert "file/folder" in sentence
    assert sentence.endswith("choose another folder.")
