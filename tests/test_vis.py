"""The figures: orientation, arrangement, the same bytes at every run, and pictures of one's own."""

import importlib

import numpy as np
import pytest
import torch
from conftest import liven, one_sentence, run_script
from PIL import Image

from checkpoint import save_checkpoint
from data import DATA_DIR, load_mnist
from errors import UserError
from model import VAE, VAEConfig
from picture import save_grid, tile

common = importlib.import_module("vis.common")
decoder_output, encoder_output, interpolation, reconstruct, curves = (
    importlib.import_module(f"vis.{name}.main")
    for name in ("decoder_output", "encoder_output", "interpolation", "reconstruct", "curves")
)


def test_tile_puts_the_images_row_by_row_from_the_top_left():
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 2, 3)
    expected = np.kron([[0, 1, 2], [3, 4, 5]], np.ones((2, 3)))
    np.testing.assert_array_equal(tile(images, 3).numpy(), expected)


def test_save_grid_writes_the_pixels(tmp_path):
    images = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    save_grid(images, 2, tmp_path / "grid.png")
    pixels = np.asarray(Image.open(tmp_path / "grid.png"))
    np.testing.assert_allclose(pixels[28:, :28], 255 * images[2, 0].numpy(), atol=0.5)


def test_the_grid_of_z_is_as_one_looks_at_a_plot():
    grid = decoder_output.latent_grid(torch.tensor([-4.0, 0.0, 4.0]))
    assert grid[0, 0].tolist() == [-4, 4]  # top left: (latent_min, latent_max)
    assert grid[0, 2].tolist() == [4, 4]
    assert grid[2, 0].tolist() == [-4, -4]
    assert grid[1, 2].tolist() == [4, 0]


def test_the_drawn_manifold_has_the_decoded_top_left_corner_at_its_top_left(monkeypatch, tiny_run, tmp_path):
    """Through the whole script: what is handed to imshow is model.decode of (latent_min, latent_max) at the top left."""
    drawn = {}
    monkeypatch.setattr(
        decoder_output, "show_images", lambda axes, images, n, extent: drawn.update(images=images, extent=extent)
    )
    flags = ["--latent_min", "-3", "--latent_max", "2", "--n_cells", "5", "--save_dir", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["main.py", "--model_params", str(tiny_run / "best.pth"), *flags])
    decoder_output.main()
    model, _ = common.load_checkpoint(tiny_run / "best.pth")
    with torch.no_grad():
        top_left, bottom_right = torch.sigmoid(model.decode(torch.tensor([[-3.0, 2.0], [2.0, -3.0]])))
    torch.testing.assert_close(drawn["images"][0], top_left)
    torch.testing.assert_close(drawn["images"][-1], bottom_right)
    assert drawn["extent"] == pytest.approx((-3.625, 2.625, -3.625, 2.625))  # cells are centred on their z


def test_the_quantiles_of_a_flow_go_through_it(monkeypatch, tmp_path):
    torch.manual_seed(0)
    model = VAE(VAEConfig("mlp", 2, 16, 1, "flow")).eval()
    liven(model.prior)
    save_checkpoint(tmp_path / "flow.pth", model, {"dataset": "MNIST", "binarize": "none"}, [])
    drawn = {}
    monkeypatch.setattr(decoder_output, "show_images", lambda axes, images, n, extent: drawn.update(images=images))
    flags = ["--model_params", "flow.pth", "--quantile", "--n_cells", "2", "--save_dir", "figures", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["main.py", *flags])
    monkeypatch.chdir(tmp_path)
    decoder_output.main()
    quartile = 0.6744898  # of N(0, 1)
    u = quartile * torch.tensor([[-1.0, 1.0], [1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
    with torch.inference_mode():
        truth, without = (torch.sigmoid(model.decode(z)) for z in (model.prior.from_normal(u), u))
    assert (truth - without).abs().max() > 0.01
    torch.testing.assert_close(drawn["images"], truth)


def test_principal_components_are_those_of_a_singular_value_decomposition():
    values = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5, 2, 3, 0.1])
    coordinates, shares = encoder_output.principal_components(values)
    centred = (values - values.mean(dim=0)).numpy()
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(coordinates.numpy()), np.abs(u[:, :2] * s[:2]), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(shares.numpy(), s[:2] ** 2 / (s**2).sum(), rtol=1e-3)


def test_interpolations_begin_and_end_where_they_should():
    rng = torch.Generator().manual_seed(0)
    start, end = torch.randn(3, 8, generator=rng), torch.randn(3, 8, generator=rng)
    for path in (interpolation.linear, interpolation.spherical):
        z = path(start, end, 5)
        torch.testing.assert_close(z[:, 0], start)
        torch.testing.assert_close(z[:, -1], end)
    middle = interpolation.spherical(start, end, 3)[:, 1]
    lengths = (start.norm(dim=1) + end.norm(dim=1)) / 2
    torch.testing.assert_close(middle.norm(dim=1), lengths)
    angles = [torch.nn.functional.cosine_similarity(middle, side) for side in (start, end)]
    torch.testing.assert_close(*angles)


@pytest.mark.parametrize("dark_on_light", [False, True])
@pytest.mark.parametrize("size", [28, 280])
def test_a_picture_of_ones_own_becomes_the_mnist_digit_that_it_shows(tmp_path, dark_on_light, size):
    digits = load_mnist(DATA_DIR, "test")[0][:20]
    for i, digit in enumerate(digits):
        grey = Image.fromarray(digit[0].numpy()).resize((size, size), Image.Resampling.BICUBIC)
        grey = Image.fromarray(np.pad(np.asarray(grey), ((0, size), (size // 2, 0))))  # not in the middle, not square
        grey = grey.point(lambda value: 255 - value) if dark_on_light else grey
        grey.save(tmp_path / f"{i}.png")
        ours = reconstruct.read_image(tmp_path / f"{i}.png")[0].float()
        weights = ours.numpy() / ours.sum().item()
        centre = [(weights * axis).sum() for axis in np.indices((28, 28))]
        assert np.abs(np.array(centre) - 14).max() <= 0.6
        assert torch.corrcoef(torch.stack((ours.flatten(), digit.flatten().float())))[0, 1] > 0.8


def test_pictures_without_a_digit_are_refused(tmp_path):
    Image.new("L", (30, 30), 255).save(tmp_path / "white.png")
    (tmp_path / "text.png").write_text("not a picture")
    for name in ("white.png", "text.png", "missing.png"):
        with pytest.raises(UserError, match=name):
            reconstruct.read_image(tmp_path / name)


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", "epoch,train_recon_loss\n1,x\n"])
def test_a_file_that_is_no_metrics_csv_is_refused(tmp_path, content):
    (tmp_path / "metrics.csv").write_text(content)
    with pytest.raises(UserError, match="metrics"):
        curves.read_metrics(tmp_path / "metrics.csv", 600.0)


def test_every_figure_of_a_model_twice_with_the_same_bytes(tiny_run, tmp_path):
    for folder in ("one", "two"):
        done = run_script("vis/all.py", "--model_params", tiny_run / "best.pth", "--save_dir", folder, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(files) == len(done.stdout.split()) == 10
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_bad_input_to_a_figure_is_one_sentence(tiny_run, tmp_path):
    missing = run_script("vis/reconstruct/main.py", "--model_params", "missing.pth", cwd=tmp_path)
    assert missing.returncode == 2
    assert "missing.pth" in one_sentence(missing.stderr)
    (tmp_path / "file").touch()
    flags = ("--model_params", tiny_run / "best.pth", "--save_dir", "file/folder")
    unwritable = run_script("vis/samples/main.py", *flags, cwd=tmp_path)
    assert unwritable.returncode == 2
    assert "--save_dir" in one_sentence(unwritable.stderr)
