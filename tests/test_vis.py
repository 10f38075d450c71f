"""The figures: what they draw where, the same bytes at every run, and pictures of one's own."""

import copy
import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from utils.checkpoint import load_checkpoint
from utils.cli import DATA_DIR, ROOT, UserError
from utils.flags import Settings
from utils.images import read_image, save_grid, tile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, one_sentence, random_model, refusal, run_script, save_model
from PIL import Image
from torch import Tensor

from data import SPLITS, load_mnist, to_float
from estimators import Gaussians, exact_nll
from model import VAE, VAEConfig
from optimizer import AdamW
from train import build, train_one_epoch, validate
from vis import common
from vis.curves.main import read_metrics
from vis.encoder_output.main import principal_components
from vis.interpolation.main import linear, spherical
from vis.posterior import main as posterior
from vis.posterior.main import choose, rings
from vis.training import main as training

N_TEST = 1000  # test images that a figure in this process sees


@pytest.fixture
def draw(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable:
    """Draws a figure of a checkpoint in this process; gives what it hands to draw_grid."""

    def run(name: str, model_params: Path, flags: str = "") -> SimpleNamespace:
        figure, drawn = importlib.import_module(f"vis.{name}.main"), SimpleNamespace()

        def draw_grid(images, n_columns, title, extent=None):
            drawn.images, drawn.n_columns, drawn.extent = images, n_columns, extent
            return common.draw_grid(images, n_columns, title, extent)

        paths = ["--model_params", str(model_params), "--save_dir", str(tmp_path / "figures")]
        with monkeypatch.context() as patch:
            patch.setattr(figure, "draw_grid", draw_grid)
            patch.setattr("sys.argv", ["main.py", *paths, "--device=cpu", *flags.split()])
            patch.setitem(SPLITS, "test", ("t10k", slice(0, N_TEST)))
            figure.main()
        return drawn

    return run


@torch.no_grad()
def decoded(model: VAE, z: Tensor) -> Tensor:
    """z (n, L) -> the pixels' means (n, 1, 28, 28)."""
    return torch.sigmoid(model.decode(z))


@torch.no_grad()
def encoded(model: VAE, index: int | Tensor) -> Tensor:
    """The posterior means (n, L) of test images."""
    images, _ = load_mnist(DATA_DIR, "test")
    return model.encode(to_float(images[index].view(-1, 1, 28, 28)))[0]


@torch.no_grad()
def moved(model: VAE, z: Tensor, changes: dict[int, float]) -> Tensor:
    """z (1, L) where some coordinates of u, of which the prior makes z, have other values."""
    u = model.prior.to_normal(z)[0].clone()
    u[:, list(changes)] = torch.tensor(list(changes.values()))
    return model.prior.from_normal(u)


def test_tile_puts_the_images_row_by_row_from_the_top_left():
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 2, 3)
    expected = np.kron([[0, 1, 2], [3, 4, 5]], np.ones((2, 3)))
    np.testing.assert_array_equal(tile(images, 3).numpy(), expected)


def test_save_grid_writes_the_pixels(tmp_path):
    images = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    save_grid(images, 2, tmp_path / "grid.png")
    pixels = np.asarray(Image.open(tmp_path / "grid.png"))
    np.testing.assert_allclose(pixels[28:, :28], 255 * images[2, 0].numpy(), atol=0.5)


def test_a_grid_has_its_cells_at_whole_numbers():
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 28, 28) / 6
    picture = common.draw_grid(images, 3, "title").images[0]
    left, right, bottom, top = picture.get_extent()
    assert (left, right, bottom, top) == (0, 3, 2, 0)
    assert picture.get_array()[28 + 14, 14] == pytest.approx(3 / 6)  # (0.5, 1.5) is the fourth


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
    path = save_model(tmp_path / "model.pth", model)
    drawn = draw("decoder_output", path, "--quantile --n_cells 2")
    quartile = 0.6744898  # of N(0, 1)
    u = quartile * torch.tensor([[-1.0, 1.0], [1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
    with torch.no_grad():
        truth = decoded(model, model.prior.from_normal(u))
    assert (truth - decoded(model, u)).abs().max() > 0.01
    torch.testing.assert_close(drawn.images, truth)
    assert drawn.extent == (0, 1, 0, 1)


@pytest.mark.parametrize("prior", ["normal", "flow"])
def test_the_plane_of_more_dimensions_goes_through_a_test_image(draw, tmp_path, prior):
    model = random_model(latent_dim=5, prior=prior)
    path = save_model(tmp_path / "model.pth", model)
    drawn = draw("decoder_output", path, "--latent_min -1 --n_cells 2 --image_index 3")
    z, matches = encoded(model, 3), 0
    for right in range(5):
        for up in range(5):
            corner = decoded(model, moved(model, z, {right: 4.0, up: -1.0}))  # the lower right
            matches += right != up and torch.allclose(drawn.images[3:], corner, atol=1e-5)
    assert matches == 1  # of all planes, it is one through this image


@pytest.mark.parametrize("prior", ["normal", "flow"])
def test_a_traversal_moves_one_dimension_of_a_test_image(draw, tmp_path, prior):
    model = random_model(latent_dim=5, prior=prior)
    path = save_model(tmp_path / "model.pth", model)
    drawn = draw("traversal", path, "--n_steps 3 --image_index 3")
    z = encoded(model, 3)
    rows = drawn.images.view(5, 3, 1, 28, 28)
    torch.testing.assert_close(rows[:, 1], decoded(model, z).expand(5, 1, 28, 28))
    with torch.no_grad():
        u, _ = model.prior.to_normal(z)
    at_the_right = [decoded(model, moved(model, z, {d: u[0, d] + 2})) for d in range(5)]
    found = {
        d
        for row in rows
        for d, truth in enumerate(at_the_right)
        if torch.allclose(row[2:], truth, atol=1e-5)
    }
    assert found == set(range(5))  # one row for each dimension


@pytest.mark.parametrize("name", ["vae_mnist_40d", "vae_mnist_40d_flow"])
def test_all_of_a_traversal_is_closer_to_a_digit_than_to_nothing(draw, name):
    """Where no posterior is, such decoders give grey noise."""
    path = ROOT / "pretrained" / f"{name}.pth"
    pixels = draw("traversal", path).images.flatten(1)
    assert len(pixels) == 130
    model, _ = load_checkpoint(path)
    digits = to_float(load_mnist(DATA_DIR, "test")[0][:N_TEST]).flatten(1)

    def distance(pixels: Tensor) -> Tensor:
        return torch.cdist(pixels, digits).amin(dim=1) / pixels.norm(dim=1)

    assert distance(pixels).max() < 0.95
    mu = encoded(model, torch.arange(N_TEST))
    noise = torch.randn(100, 40, generator=torch.Generator().manual_seed(0))
    elsewhere = mu.mean(dim=0) + 3 * mu.std(dim=0) * noise  # (100, 40)
    assert distance(decoded(model, elsewhere).flatten(1)).max() > 1.1  # such noise is noticed


@pytest.mark.parametrize("binarize", ["none", "threshold"])
def test_reconstructions_stand_below_their_images(draw, tmp_path, binarize):
    model = random_model()
    path = save_model(tmp_path / "model.pth", model, binarize=binarize)
    images, _ = load_mnist(DATA_DIR, "test")
    save_grid(to_float(images[3:4]), 1, tmp_path / "own.png")
    drawn = draw("reconstruct", path, f"--image {tmp_path / 'own.png'}")
    own = to_float(read_image(tmp_path / "own.png")[None])
    own = own if binarize == "none" else (own > 0.5).float()
    assert drawn.images.shape == (1, 1, 56, 28)
    torch.testing.assert_close(drawn.images[:, :, :28], own)
    with torch.no_grad():
        mu, _ = model.encode(own)
    torch.testing.assert_close(drawn.images[:, :, 28:], decoded(model, mu))

    drawn = draw("reconstruct", path, "--n_images 12")
    assert drawn.n_columns == 10
    assert len(drawn.images) == 20
    assert drawn.images[12:].max() == 0
    with torch.no_grad():
        mu, _ = model.encode(drawn.images[:12, :, :28])
    torch.testing.assert_close(drawn.images[:12, :, 28:], decoded(model, mu))


@pytest.mark.parametrize("prior", ["normal", "flow"])
def test_interpolations_begin_and_end_at_the_images_beside_them(draw, tmp_path, prior):
    model = random_model(latent_dim=5, prior=prior)
    path = save_model(tmp_path / "model.pth", model)
    rows = draw("interpolation", path, "--n_pairs 3 --n_steps 4").images.view(3, 6, 1, 28, 28)
    with torch.no_grad():
        ends = [model.encode(rows[:, column])[0] for column in (0, 5)]
    torch.testing.assert_close(rows[:, 1], decoded(model, ends[0]))
    torch.testing.assert_close(rows[:, 4], decoded(model, ends[1]))


def test_interpolations_turn_evenly_and_keep_their_length():
    rng = torch.Generator().manual_seed(0)
    start, end = torch.randn(3, 8, generator=rng), torch.randn(3, 8, generator=rng)
    for path in (linear, spherical):
        z = path(start, end, 5)
        torch.testing.assert_close(z[:, 0], start)
        torch.testing.assert_close(z[:, -1], end)
    torch.testing.assert_close(linear(start, end, 3)[:, 1], (start + end) / 2)
    middle = spherical(start, end, 3)[:, 1]
    torch.testing.assert_close(middle.norm(dim=1), (start.norm(dim=1) + end.norm(dim=1)) / 2)
    angles = [F.cosine_similarity(middle, side) for side in (start, end)]
    torch.testing.assert_close(*angles)


def test_principal_components_are_those_of_a_singular_value_decomposition():
    scales = torch.tensor([1.0, 5, 2, 3, 0.1])
    values = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)) * scales
    coordinates, shares = principal_components(values)
    u, s, _ = np.linalg.svd((values - values.mean(dim=0)).numpy(), full_matrices=False)
    expected = np.abs(u[:, :2] * s[:2])
    np.testing.assert_allclose(np.abs(coordinates.numpy()), expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(shares.numpy(), s[:2] ** 2 / (s**2).sum(), rtol=1e-3)


@pytest.mark.parametrize("prior", ["normal", "flow"])
def test_the_rings_are_the_deviations_of_a_gaussian(prior):
    model = random_model(prior=prior)
    mu, logvar = torch.tensor([[0.5, -1.0]]), torch.tensor([[-2.0, -4.0]])
    q = Gaussians(mu.double(), logvar.double())  # as the estimators give them
    for deviations, ring in enumerate(rings(model, q), start=1):
        with torch.no_grad():
            eps = (model.prior.from_normal(ring) - mu) * torch.exp(-0.5 * logvar)
        torch.testing.assert_close(eps.norm(dim=1), torch.full((200,), float(deviations)))


def test_the_images_of_a_posterior_figure_are_the_extreme_ones():
    n_modes = [1.0, 3.0, 1.5, 1.0, 2.0, 1.2, 2.5, 1.0]
    kl = [0.1, 9.0, 5.0, 0.2, 1.0, 6.0, 0.3, 0.4]
    most, furthest, fewest = (1, 6), (5, 2), (0, 3)
    assert choose(n_modes, kl) == [1, 5, 0, 6, 2, 3]
    assert {*most, *furthest, *fewest} == set(choose(n_modes, kl))


@pytest.mark.parametrize("prior", ["normal", "flow"])
def test_what_a_posterior_figure_says_of_an_image(monkeypatch, tmp_path, prior):
    """Its evidence is that of exact_nll; a model of more dimensions is refused."""
    drawn, draw_gaps = {}, posterior.draw_gaps

    def recorded(*args):
        drawn["gaps"] = args[1:3]
        draw_gaps(*args)

    monkeypatch.setattr(posterior, "draw_gaps", recorded)
    flags = ["--save_dir", str(tmp_path), "--image_index", "5", "2", "--device=cpu"]
    model = random_model(prior=prior)
    path = save_model(tmp_path / "model.pth", model)
    monkeypatch.setattr("sys.argv", ["main.py", "--model_params", str(path), *flags])
    posterior.main()
    indices, gaps = drawn["gaps"]
    assert indices == [5, 2]
    images = load_mnist(DATA_DIR, "test")[0][indices]
    exact, _, _ = exact_nll(model, images, 64)
    found = torch.tensor([gap.posterior.log_evidence for gap in gaps])
    torch.testing.assert_close(found.double(), -exact, atol=2e-3, rtol=0)
    assert min(gap.kl for gap in gaps) > 0
    assert (tmp_path / "posterior.png").exists()

    path = save_model(tmp_path / "model.pth", random_model(latent_dim=3))
    with pytest.raises(common.NotApplicable, match="2 latent dimensions"):
        posterior.main()


@pytest.mark.parametrize("kl", [[0.0, 1e-6, -1e-7], [1e-5, 0.5, 30.0]], ids=["collapsed", "some"])
def test_the_histogram_of_gaps_counts_every_image(monkeypatch, tmp_path, kl):
    gaps = [SimpleNamespace(kl=value, mass=torch.ones(1)) for value in kl]
    drawn = []
    monkeypatch.setattr(posterior, "save_figure", lambda figure, *_: drawn.append(figure))
    posterior.draw_summary(gaps, "name", tmp_path)
    assert sum(bar.get_height() for bar in drawn[0].axes[0].patches) == len(kl)


def test_a_film_shows_the_training_of_train_py():
    """The filmed model ends bit for bit where the loop without a camera does."""
    images = load_mnist(DATA_DIR, "train")[0][:192]
    val, test = images[:64], images[64:128]
    settings = Settings(n_epochs=3, batch_size=64)
    models = [build(VAEConfig(width=16, n_blocks=1), settings, images, None)[0] for _ in "ab"]
    start = copy.deepcopy(models[0])
    frames = training.film(models[0], settings, images, val, test)
    optimizer = AdamW(models[1].parameters())
    for epoch in (1, 2, 3):
        train_one_epoch(models[1], optimizer, images, settings, epoch)
    torch.testing.assert_close(*(model.state_dict() for model in models), rtol=0, atol=0)

    assert [frame.step for frame in frames] == list(range(10))
    assert sorted(frames, key=lambda frame: frame.seconds) == frames
    with optimizer.averaged():
        for frame, model in ((frames[0], start), (frames[-1], models[1])):
            model.eval()
            with torch.no_grad():
                torch.testing.assert_close(frame.u, model.encode(to_float(test))[0])
            assert frame.neg_elbo == validate(model, val, settings)["val_neg_elbo"]
            inside = 3.5 - 3.5 / 13  # by half a cell
            corner = decoded(model, torch.tensor([[-inside, inside]]))
            torch.testing.assert_close(frame.plane[:1], corner)


def test_the_moments_of_a_film_are_evenly_spaced_in_their_logarithm():
    steps = sorted(training.moments(882))
    assert {0, 1, 2, 3, 4, 882} <= set(steps)
    assert 55 <= len(steps) <= 65
    late = np.log(steps[-30:])
    np.testing.assert_allclose(np.diff(late), np.diff(late).mean(), rtol=0.15)
    assert sorted(training.moments(3)) == [0, 1, 2, 3]


def test_a_film_is_the_same_bytes_twice_and_holds_its_last_frame(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for folder in ("one", "two"):
        flags = f"--n_epochs 2 --save_dir {folder} --frames {folder}/frames"
        monkeypatch.setattr("sys.argv", ["main.py", *TINY, *flags.split()])
        training.main()
    one, two = (tmp_path / folder / "training.gif" for folder in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    with Image.open(one) as film:
        durations = []
        for number in range(film.n_frames):
            film.seek(number)
            durations.append(film.info["duration"])
        assert durations == [100, 100, 100, 100, 2000]
        last = np.asarray(film.convert("RGB"), dtype=float)
    names = [f"step_{step:06d}.png" for step in range(5)]
    assert [path.name for path in sorted((tmp_path / "one" / "frames").iterdir())] == names
    frame = np.asarray(Image.open(tmp_path / "one" / "frames" / names[-1]), dtype=float)
    assert np.abs(last - frame).mean() < 3


@pytest.mark.parametrize("dark_on_light", [False, True])
@pytest.mark.parametrize("size", [28, 280])
def test_a_picture_of_ones_own_becomes_the_mnist_digit_that_it_shows(tmp_path, dark_on_light, size):
    digits = load_mnist(DATA_DIR, "test")[0][:20]
    for i, digit in enumerate(digits):
        grey = Image.fromarray(digit[0].numpy()).resize((size, size), Image.Resampling.BICUBIC)
        off_centre = np.pad(np.asarray(grey), ((0, size), (size // 2, 0)))  # and not square
        Image.fromarray(255 - off_centre if dark_on_light else off_centre).save(tmp_path / "i.png")
        ours = read_image(tmp_path / "i.png")[0].float()
        weights = ours.numpy() / ours.sum().item()
        centre = [(weights * axis).sum() for axis in np.indices((28, 28))]
        assert np.abs(np.array(centre) - 14).max() <= 0.6, i
        both = torch.stack((ours.flatten(), digit.flatten().float()))
        assert torch.corrcoef(both)[0, 1] > 0.8, i


def test_transparent_and_turned_pictures_are_read_as_they_are_seen(tmp_path):
    """Black strokes on nothing, as drawing programs save them, and a photograph held upright."""
    ink = load_mnist(DATA_DIR, "test")[0][0, 0]
    Image.fromarray(ink.numpy()).save(tmp_path / "opaque.png")
    strokes = torch.zeros(28, 28, 4, dtype=torch.uint8)
    strokes[..., 3] = ink
    Image.fromarray(strokes.numpy()).save(tmp_path / "transparent.png")
    orientation = Image.Exif()
    orientation[0x0112] = 6  # "turn it clockwise": what the camera saved is turned the other way
    turned = Image.fromarray(ink.rot90(1).contiguous().numpy())
    turned.save(tmp_path / "turned.png", exif=orientation)
    truth = read_image(tmp_path / "opaque.png")
    for name in ("transparent.png", "turned.png"):
        assert torch.equal(read_image(tmp_path / name), truth)


def test_pictures_without_a_digit_are_refused(tmp_path):
    Image.new("L", (30, 30), 255).save(tmp_path / "white.png")
    (tmp_path / "text.png").write_text("not a picture")
    for name in ("white.png", "text.png", "missing.png"):
        with pytest.raises(UserError, match=name):
            read_image(tmp_path / name)


def test_the_loss_of_a_run_is_the_sum_of_its_terms(tmp_path):
    columns = "epoch,train_recon_loss,train_kld_loss,val_recon_loss,val_kld_loss"
    (tmp_path / "metrics.csv").write_text(f"{columns}\n1,0.25,5,0.5,6\n2,0.125,7,0.25,8\n")
    run = read_metrics(tmp_path / "metrics.csv", recon_weight=100.0)
    assert run["epoch"] == [1, 2]
    assert run["train_loss"] == [30, 19.5]
    assert run["val_loss"] == [56, 33]


@pytest.mark.parametrize("content", [None, "", "a,b\n1,2\n", "epoch,train_recon_loss\n1,x\n"])
def test_a_file_that_is_no_metrics_csv_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "metrics.csv").write_text(content)
    with pytest.raises(UserError, match=re.escape("metrics.csv is not a metrics.csv")):
        read_metrics(tmp_path / "metrics.csv", 600.0)


def test_every_figure_of_a_model_twice_with_the_same_bytes(tiny_run, tmp_path):
    for folder in ("one", "two"):
        where = tmp_path / folder
        where.mkdir()
        flags = ("--model_params", tiny_run / "best.pth")
        done = run_script("vis/all.py", *flags, cwd=where)
        assert done.returncode == 0, done.stderr
    files = sorted(path.name for path in (where / "figures").iterdir())
    assert len(files) == len(done.stdout.split()) == 11
    for name in files:
        one, two = (tmp_path / folder / "figures" / name for folder in ("one", "two"))
        assert one.read_bytes() == two.read_bytes(), name


def test_the_curves_of_a_model_are_those_of_its_own_loss(monkeypatch, tmp_path):
    everything, calls = importlib.import_module("vis.all"), []
    figure = SimpleNamespace(main=lambda: calls.append(list(sys.argv)))
    monkeypatch.setattr(everything, "import_module", lambda name: figure)
    path = save_model(tmp_path / "model.pth", random_model(), recon_weight=123.5)
    (tmp_path / "model.csv").touch()
    monkeypatch.setattr(sys, "argv", ["vis/all.py", "--model_params", str(path)])
    everything.main()
    (curves,) = (words for words in calls if words[0] == "curves")
    assert curves[curves.index("--recon_weight") + 1] == "123.5"


def test_of_one_dimension_all_figures_but_those_of_a_plane_are_drawn(tmp_path):
    path = save_model(tmp_path / "model.pth", random_model(latent_dim=1))
    done = run_script("vis/all.py", "--model_params", path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    left_out = [line.split()[0] for line in done.stdout.splitlines() if " left out: " in line]
    assert left_out == ["decoder_output", "decoder_output", "posterior", "explorer"]
    assert len(list((tmp_path / "figures").iterdir())) == len(done.stdout.splitlines()) - 4 == 6
    alone = run_script("vis/decoder_output/main.py", "--model_params", path, cwd=tmp_path)
    assert "at least 2 latent dimensions" in refusal(alone)


def test_bad_input_to_a_figure_is_one_sentence(tiny_run, tmp_path):
    for script in ("vis/reconstruct/main.py", "vis/all.py"):
        missing = run_script(script, "--model_params", "missing.pth", cwd=tmp_path)
        assert "missing.pth" in refusal(missing)
    (tmp_path / "file").touch()
    flags = ("--model_params", tiny_run / "best.pth", "--save_dir", "file/folder")
    unwritable = run_script("vis/samples/main.py", *flags, cwd=tmp_path)
    assert unwritable.returncode == 2
    sentence = one_sentence(unwritable.stderr)
    assert "file/folder" in sentence
    assert sentence.endswith("choose another folder.")
    too_long = run_script("vis/samples/main.py", "--model_params", "a" * 300, cwd=tmp_path)
    assert "is not a file" in refusal(too_long)
