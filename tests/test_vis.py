"""The figures: their contents and places, identical bytes at every run, pictures of one's own."""

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY, random_model, refusal, run_script, save_model
from PIL import Image
from torch import Tensor
from torchvision.utils import save_image

from data import SPLITS, binarize, load_mnist
from estimators import exact_nll, posteriors
from model import VAE
from train import build, parse_flags, train_one_epoch
from utils.cli import DATA_DIR, UserError
from utils.photos import read_image
from vis import common
from vis.curves.main import read_metrics
from vis.posterior import main as posterior
from vis.posterior.true_posterior import exact_elbo
from vis.training import main as training

FEW = ("t10k", 10_000, slice(0, 1000))  # test images, for speed
NOTEBOOK = "module://matplotlib_inline.backend_inline"  # in the environment of a notebook's shell


@pytest.fixture
def draw(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable:
    """Draws a figure of a checkpoint; returns it and the arguments of draw_grid."""

    def run(name: str, model_params: Path, flags: str = "") -> SimpleNamespace:
        module = "vis.all" if name == "all" else f"vis.{name}.main"
        figure, drawn = importlib.import_module(module), SimpleNamespace()

        def draw_grid(images, n_columns, title, extent=None):
            drawn.images, drawn.n_columns, drawn.extent = images, n_columns, extent
            return common.draw_grid(images, n_columns, title, extent)

        def save_figure(figure, *_):
            drawn.figure = figure

        paths = ["--model_params", str(model_params), "--save_dir", str(tmp_path / "figures")]
        with monkeypatch.context() as patch:
            patch.setattr(figure, "draw_grid", draw_grid, raising=False)
            patch.setattr(figure, "save_figure", save_figure, raising=False)
            patch.setattr("sys.argv", ["main.py", *paths, "--device=cpu", *flags.split()])
            patch.setitem(SPLITS, "test", FEW)
            figure.main()
        return drawn

    return run


@torch.no_grad()
def decoded(model: VAE, z: Tensor) -> Tensor:
    """z (n, L) -> pixel means (n, 1, 28, 28)."""
    return torch.sigmoid(model.decode(z))


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


def test_a_traversal_moves_one_dimension_of_a_test_image_in_each_row(draw, tmp_path):
    model = random_model(latent_dim=5, prior="flow")
    drawn = draw("traversal", save_model(tmp_path / "model.pth", model), "--image_index 3")
    original, *rows = drawn.images.view(6, 11, 1, 28, 28)
    image = load_mnist(DATA_DIR, "test")[0][3] / 255
    torch.testing.assert_close(original[5], image)
    assert original.sum() == image.sum()  # the rest is black
    with torch.no_grad():
        z, _ = model.encode(image[None])
        u, _ = model.prior.to_normal(z)
        ends = decoded(model, model.prior.from_normal(u + 2 * torch.eye(5)))
    found = []
    for row in rows:
        torch.testing.assert_close(row[5:6], decoded(model, z))
        found.append([torch.allclose(row[10], end, atol=1e-5) for end in ends].index(True))
    assert sorted(found) == list(range(5))  # one row for each dimension


@pytest.mark.parametrize("mode", ["none", "dynamic"])
def test_reconstructions_stand_below_their_images(draw, tmp_path, mode):
    model = random_model()
    path = save_model(tmp_path / "model.pth", model, binarize=mode)
    save_image(load_mnist(DATA_DIR, "test")[0][3] / 255, tmp_path / "own.png")
    drawn = draw("reconstruct", path, f"--image {tmp_path / 'own.png'}")
    own = binarize(read_image(tmp_path / "own.png")[None], mode) / 255
    given, seen, mean = (torch.tensor(axes.images[0].get_array()) for axes in drawn.figure.axes)
    assert torch.equal(given, load_mnist(DATA_DIR, "test")[0][3][0].float())
    torch.testing.assert_close(seen / 255, own[0, 0])
    torch.testing.assert_close(mean / 255, decoded(model, model.encode(own)[0])[0, 0])

    drawn = draw("reconstruct", path, "--n_images 12")
    assert (drawn.n_columns, len(drawn.images)) == (10, 20)
    assert drawn.images[12:].max() == 0
    mu, _ = model.encode(drawn.images[:12, :, :28])
    torch.testing.assert_close(drawn.images[:12, :, 28:], decoded(model, mu))


def test_interpolations_lead_from_image_to_image_in_even_steps(draw, tmp_path):
    model = random_model(latent_dim=5, prior="flow")
    path = save_model(tmp_path / "model.pth", model)
    rows = draw("interpolation", path).images.view(7, 12, 1, 28, 28)
    with torch.no_grad():
        start, end = (model.prior.to_normal(model.encode(rows[:, i])[0])[0] for i in (0, 11))
        for k in range(10):
            z = model.prior.from_normal(start + k / 9 * (end - start))
            torch.testing.assert_close(rows[:, 1 + k], decoded(model, z), atol=1e-4, rtol=1e-4)


def test_a_scatter_is_shuffled_and_names_each_digit_at_its_median():
    generator = torch.Generator().manual_seed(0)
    points, labels = torch.randn(5000, 2, generator=generator), torch.arange(5000) // 500
    _, axes = common.plt.subplots()
    common.scatter_digits(axes, points, labels, size=4, alpha=0.5)
    (dots,) = axes.collections
    place = {tuple(point): i for i, point in enumerate(points.tolist())}
    order = [place[tuple(dot)] for dot in dots.get_offsets().tolist()]
    assert (labels[order[:1000]].bincount() - 100).abs().max() < 50  # all digits from the start
    colours = [common.plt.matplotlib.colors.to_hex(colour) for colour in dots.get_facecolors()]
    assert colours == [common.DIGIT_COLOURS[label] for label in labels[order]]
    for digit, text in enumerate(axes.texts):
        median = np.sort(points[500 * digit :][:500].numpy(), axis=0)[249]
        assert (text.get_text(), *text.get_position()) == (str(digit), *median)


def test_a_posterior_figure_says_what_the_encoder_misses(draw, tmp_path):
    model = random_model(prior="flow")
    drawn = draw("posterior", save_model(tmp_path / "2d.pth", model), "--image_index 5 2")
    images = load_mnist(DATA_DIR, "test")[0][[5, 2]]
    nll, _, _ = exact_nll(model, images, 65)
    gap = -nll - exact_elbo(model, images, posteriors(model, images))
    titles = [axes.get_title() for axes in drawn.figure.axes[::2]]
    assert titles == [f"q misses {nats:.1f} nats" for nats in gap]


def test_the_rings_of_a_posterior_figure_are_1_and_2_standard_deviations_away():
    mu, logvar = torch.tensor([0.5, -1.0]), torch.tensor([-2.0, -4.0])
    for model in (random_model(), random_model(prior="flow")):
        for radius, ring in enumerate(posterior.rings(model, mu, logvar), start=1):
            eps = (model.prior.from_normal(ring) - mu) * torch.exp(-0.5 * logvar)
            torch.testing.assert_close(eps.norm(dim=1), torch.full((200,), float(radius)))


def test_a_film_shows_the_average_of_the_training_of_train_py():
    images = load_mnist(DATA_DIR, "train")[0][:192]
    args = parse_flags([*TINY, "--n_epochs=12", "--batch_size=16"])  # 144 steps
    run, other = build(args, images), build(args, images)
    assert [step for step, _ in training.film(run, images, args)] == [8 * k for k in range(19)]
    for epoch in range(1, 13):
        list(train_one_epoch(other.model, other.average, other.optimizer, images, args, epoch))
    torch.testing.assert_close(run.average.state_dict(), other.average.state_dict(), rtol=0, atol=0)
    u, plane = training.see(run.average, images)
    torch.testing.assert_close(u, run.average.encode(images / 255)[0])
    inside = 3.5 - 3.5 / 13  # by half a cell
    corner = decoded(run.average, torch.tensor([[-inside, inside]]))
    torch.testing.assert_close(plane[:1], corner)


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


def test_every_figure_of_a_model_twice_with_the_same_bytes(draw, tiny_run, tmp_path):
    """In this process, and in one whose environment asks for a backend that it does not have."""
    (tmp_path / "all.py").write_text(
        f'import data\ndata.SPLITS["test"] = {FEW}\nimport vis.all\nvis.all.main()'
    )
    flags = f"--model_params {tiny_run / 'best.pth'} --save_dir one"
    done = run_script(tmp_path / "all.py", flags, cwd=tmp_path, MPLBACKEND=NOTEBOOK)
    assert done.returncode == 0, done.stderr
    draw("all", tiny_run / "best.pth")
    files = {path.name for path in (tmp_path / "figures").iterdir()}
    assert files == {Path(path).name for path in done.stdout.split()}
    assert len(files) == 10
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "figures" / name).read_bytes()


def test_of_one_dimension_all_figures_but_those_of_a_plane_are_drawn(draw, tmp_path, capsys):
    draw("all", save_model(tmp_path / "model.pth", random_model(latent_dim=1)))
    printed = capsys.readouterr().out.splitlines()
    left_out = [line.split()[0] for line in printed if " left out: " in line]
    planes = ["decoder_output", "encoder_output", "explorer", "posterior", "decoder_output"]
    assert left_out == planes
    assert len(list((tmp_path / "figures").iterdir())) == 4


def test_bad_input_to_a_figure_is_one_sentence(draw, tiny_run, tmp_path):
    with pytest.raises(UserError, match=r"missing\.pth is not a file"):
        draw("all", tmp_path / "missing.pth")
    (tmp_path / "file").touch()
    flags = ("--model_params", tiny_run / "best.pth", "--save_dir", "file/folder")
    sentence = refusal(run_script("vis/samples/main.py", *flags, cwd=tmp_path))
    assert "file/folder" in sentence
    assert sentence.endswith("choose another folder.")
