"""vis/explorer: the page in a real browser. What it shows is compared with the model itself."""

import base64
import io
import shutil

import pytest
import torch
from conftest import random_model, save_model
from PIL import Image
from torch import nn
from torchvision.transforms.functional import pil_to_tensor

import vis.explorer.main as explorer
from data import SPLITS, load_mnist
from estimators import exact_nll
from loss import bernoulli_nll, gaussian_log_prob, kl_divergence
from model import VAE
from utils.cli import DATA_DIR, UserError
from vis.common import DIGIT_COLOURS

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
OFFLINE = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
OFFLINE += ["--disable-component-update", "--disable-sync"]
N_IMAGES = 400
TOLERANCE = 2 / 255  # of a pixel in [0, 1]


def with_flow(**config) -> VAE:
    """Its prior is far from the standard normal, yet smooth enough for estimates from few draws."""
    model = random_model(prior="flow", **config)
    for coupling in model.prior.couplings:
        coupling.net[-1].weight.data *= 0.2
        s, t = coupling.net[-1].bias.data.chunk(2)
        s.fill_(0.1)
        t.fill_(0.3)
    return model


def sharp(model: VAE) -> VAE:
    """Its posteriors are narrow and have several modes."""
    model.decoder[0].weight.data *= 5
    return model


def active(model: VAE) -> VAE:
    """Its posterior means vary enough for all latent units to be active."""
    model.encoder[-1].linear.weight.data *= 4
    return model


def write_page(folder, monkeypatch, model: VAE, n_images: int = N_IMAGES):
    flags = ["--model_params", save_model(folder / "model.pth", model), "--device", "cpu"]
    flags += ["--save_dir", folder / "out", "--n_images", n_images]
    monkeypatch.setattr("sys.argv", ["main.py", *map(str, flags)])
    few = slice(0, max(n_images, 1000))  # for speed
    monkeypatch.setitem(SPLITS, "test", ("t10k", 10_000, few))
    explorer.main()
    return folder / "out" / "explorer.html"


def canvas(page, selector: str, channel: str = "R") -> torch.Tensor:
    """One channel of a canvas, "R", "G", "B" or "A", in [0, 1]: (height, width)."""
    png = page.locator(selector).evaluate("canvas => canvas.toDataURL()").split(",")[1]
    return pil_to_tensor(Image.open(io.BytesIO(base64.b64decode(png))).getchannel(channel))[0] / 255


@torch.no_grad()
def decoded(model: VAE, z) -> torch.Tensor:
    """z (..., L) -> (n, 28, 28) in [0, 1]"""
    z = torch.as_tensor(z).float().reshape(-1, model.config.latent_dim)
    return torch.sigmoid(model.decode(z))[:, 0]


@torch.no_grad()
def encoded(model: VAE, n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The first n test images x (n, 1, 28, 28), and their mu and logvar (n, L)."""
    x = load_mnist(DATA_DIR, "test")[0][:n] / 255
    return x, *model.encode(x)


@torch.no_grad()
def log_joint(model: VAE, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """log p(x|z) + log p(z) of one image: z (..., 2), x (1, 28, 28) -> (...)."""
    return model.prior.log_prob(z) - bernoulli_nll(model.decode(z), x)


def at(page, points) -> torch.Tensor:
    """The coordinates on the map (n, 2) of points of the screen (n, 2)."""
    script = "points => points.map(([x, y]) => explorer.at(x, y))"
    return torch.tensor(page.evaluate(script, [[float(x), float(y)] for x, y in points]))


def on_the_map(page, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """The coordinates (rows * columns, 2) of some pixels of the map's canvas."""
    box = page.locator("#map").bounding_box()
    x, y = box["x"] + columns + 0.5, box["y"] + rows + 0.5
    x = at(page, [(value, y[0]) for value in x])[:, 0]
    y = at(page, [(0, value) for value in y])[:, 1]
    return torch.cartesian_prod(y, x).flip(1)


def answer(page) -> dict:
    """The page's last true posterior, after the worker has refined it."""
    page.wait_for_function("explorer.state.posterior?.done", timeout=120_000)
    return page.evaluate("explorer.state.posterior")


def assert_pixels(shown: torch.Tensor, truth: torch.Tensor) -> None:
    assert (shown - truth).abs().max() <= TOLERANCE


def state(page, expression: str):
    return page.evaluate(f"() => {{ const s = explorer.state; return {expression}; }}")


def hover(page, image: int) -> tuple[float, float]:
    """The mouse over a test image's point."""
    x, y = page.evaluate(f"explorer.place(explorer.testImage({image}).mu)")
    page.mouse.move(round(x), round(y))
    return round(x), round(y)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: the page needs a browser"
    )
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=OFFLINE)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(model, path of its page) by name; odd widths, so that no loop's remainder stays untested."""
    models = {
        "mlp": random_model(width=30, n_blocks=2),
        "conv": active(random_model(arch="conv", latent_dim=5, width=10)),
        "sharp": sharp(random_model(width=30, n_blocks=2)),
        "conv_2d": random_model(arch="conv", latent_dim=2, width=6),
        "flow": with_flow(width=30, n_blocks=2),
        "flow_3d": with_flow(latent_dim=3, width=30, n_blocks=1),  # its halves differ in size
    }
    with pytest.MonkeyPatch.context() as patch:
        return {
            name: (model, write_page(tmp_path_factory.mktemp(name), patch, model))
            for name, model in models.items()
        }


@pytest.fixture
def open_page(browser, written):
    """Opens a page by its model's name; in the end nothing has gone wrong or been fetched."""
    contexts, troubles, requested = [], [], []

    def open_(name: str = "mlp", **options):
        context = browser.new_context(**({"viewport": {"width": 1000, "height": 700}} | options))
        contexts.append(context)
        page = context.new_page()
        url = written[name][1].as_uri() if name in written else name
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: requested.append((url, request.url)))
        page.goto(url)
        page.wait_for_function("window.explorer")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert troubles == []
    for own, url in requested:
        assert url.startswith((own, "blob:"))  # the page, and the worker that it starts


def test_the_default_model_fits_with_its_encoder(tmp_path, monkeypatch, open_page):
    path = write_page(tmp_path, monkeypatch, random_model(width=None), n_images=10_000)
    assert path.stat().st_size < 10_000_000
    page = open_page(path.as_uri())
    assert page.locator("#draw").is_visible()  # the encoder is there too


@pytest.mark.parametrize("name", ["mlp", "conv", "flow_3d"])
def test_the_decoder_is_the_models_own_wherever_the_map_can_go(name, open_page, written):
    model, page = written[name][0], open_page(name)
    reach, plane, centre = page.evaluate(
        "[explorer.content.reach, explorer.content.plane, explorer.content.centre]"
    )
    rng = torch.Generator().manual_seed(1)
    z = 2 * torch.rand(100, model.config.latent_dim, generator=rng) - 1
    z[:, plane] *= explorer.FARTHEST
    z[:4, plane] = explorer.FARTHEST * torch.tensor([[-1.0, -1], [-1, 1], [1, -1], [1, 1]])
    z = z * reach + torch.tensor(centre)
    shown = page.evaluate("zs => zs.map((z) => [...explorer.decode(z)])", z.tolist())
    truth = decoded(model, z)
    assert truth.std(dim=0).mean() > 0.05  # or the comparison would say little
    assert_pixels(torch.tensor(shown).view(-1, 28, 28), truth)


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_the_digit_follows_the_pointer_into_the_corners(name, open_page, written):
    model, page = written[name][0], open_page(name)
    box, before = page.locator("#map").bounding_box(), torch.zeros(28, 28)
    for across in (0.02, 0.6, 0.98):
        for up in (0.02, 0.45, 0.98):
            x, y = box["x"] + across * box["width"], box["y"] + up * box["height"]
            page.mouse.move(x, y)
            z, plane = state(page, "[[...s.z], explorer.content.plane]")
            assert at(page, [(x, y)])[0].tolist() == pytest.approx([z[d] for d in plane], abs=1e-3)
            shown = canvas(page, "#digit")
            assert_pixels(shown, decoded(model, z)[0])
            assert (shown - before).abs().max() > 0.02
            before = shown


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_the_encoder_stays_close_to_the_models(name, open_page, written):
    model, page = written[name][0], open_page(name)
    x, *truth = encoded(model, 20)
    encode = "x => { const q = explorer.encode(x); return [[...q.mu], [...q.logvar]]; }"
    found = page.evaluate(f"xs => xs.map({encode})", x.flatten(1).tolist())
    error = (torch.tensor(found) - torch.stack(truth, dim=1)).abs().max()
    assert error < 0.05 * truth[0].std()


def test_hovering_a_point_shows_its_image_and_its_nats(open_page, written):
    model, page = written["mlp"][0], open_page()
    hover(page, 7)
    index = state(page, "s.index")  # 7, or a point still nearer to the middle of that pixel
    away = "Math.hypot(...explorer.testImage(7).mu.map((m, d) => m - s.subject.mu[d]))"
    assert state(page, away) < 0.1
    x, mu, logvar = (part[index, None] for part in encoded(model, N_IMAGES))
    with torch.no_grad():
        nats = [bernoulli_nll(model.decode(mu), x).item(), kl_divergence(mu, logvar).item()]
    label = load_mnist(DATA_DIR, "test")[1][index]
    assert page.locator("#title").inner_text() == f"Test image {index}, a {label}"
    assert torch.equal(canvas(page, "#original"), x[0, 0])
    assert_pixels(canvas(page, "#reconstruction"), decoded(model, mu)[0])
    shown = state(page, "[s.subject.recon, s.subject.kl]")
    assert shown == pytest.approx(nats, rel=0.01, abs=0.02)
    assert page.locator("#kl").inner_text() == f"{shown[1]:.1f} nats"


@pytest.mark.parametrize("name", ["flow", "flow_3d"])
def test_with_a_flow_the_kl_is_an_estimate_under_that_prior(name, open_page, written):
    model, page = written[name][0], open_page(name)
    _, mu, logvar = encoded(model, 10)

    @torch.no_grad()
    def estimate(eps):  # (K, 10, L) -> (10,)
        return model.prior.kl(mu, logvar, model.reparameterize(mu, logvar, eps)).mean(dim=0)

    rng = torch.Generator().manual_seed(1)
    truth = estimate(torch.randn(20_000, *mu.shape, generator=rng))
    same_draws = estimate(explorer.fixed_eps(explorer.N_DRAWS, mu.shape[1])[:, None])
    kl = page.evaluate("[...Array(10).keys()].map((i) => explorer.testImage(i).kl)")
    torch.testing.assert_close(torch.tensor(kl), same_draws, rtol=0.005, atol=0.01)
    assert (torch.tensor(kl) - truth).abs().max() < 0.1  # one draw's spread is 1.1 nats
    assert (kl_divergence(mu, logvar) - truth).abs().min() > 1  # the closed form would not do
    title = page.locator("#kl-name").get_attribute("title")
    assert title.endswith("an estimate from 64 draws of z")
    recon, kl = state(page, "[s.subject.recon, s.subject.kl]")
    assert page.locator("#kl").inner_text() == f"{kl:.1f} nats"
    assert page.locator("#sum").inner_text() == f"{recon + kl:.1f} nats"
    # The map and the sliders begin in the middle of this prior.
    centre = model.prior.from_normal(torch.zeros(mu.shape[1])).tolist()
    view, plane = page.evaluate("[explorer.view, explorer.content.plane]")
    assert [view["x"], view["y"]] == pytest.approx([centre[d] for d in plane], abs=1e-5)
    sliders = page.locator("#sliders input").all()
    for d, slider in zip(page.evaluate("explorer.content.sliders"), sliders, strict=True):
        low, high = (float(slider.get_attribute(end)) for end in ("min", "max"))
        assert (low + high) / 2 == pytest.approx(centre[d], abs=1e-5)


def test_the_legend_switches_digits_off(open_page):
    page = open_page()

    def inked() -> list[int]:
        """How many pixels of the map have each digit's colour."""
        page.wait_for_timeout(100)
        rgb = torch.stack([canvas(page, "#base", channel) * 255 for channel in "RGB"], dim=-1)
        colours = ([int(colour[k : k + 2], 16) for k in (1, 3, 5)] for colour in DIGIT_COLOURS)
        return [int(((rgb - torch.tensor(c)).abs().amax(dim=-1) < 2).sum()) for c in colours]

    assert min(inked()) > 20
    page.get_by_role("button", name="3", exact=True).click()
    without = inked()
    assert without[3] == 0
    assert min(without[:3] + without[4:]) > 20
    page.get_by_role("button", name="5", exact=True).dblclick()
    assert [d for d, n in enumerate(inked()) if n] == [5]
    hidden = next(i for i, label in enumerate(load_mnist(DATA_DIR, "test")[1]) if label == 0)
    hover(page, hidden)
    assert state(page, "s.index") != hidden
    page.locator("#all").click()
    assert min(inked()) > 20


def test_wheel_drag_and_keys_move_the_map(open_page):
    page = open_page()
    x, y = hover(page, 3)
    under = at(page, [(x, y)])
    page.mouse.wheel(0, -600)
    page.wait_for_function("explorer.view.zoom > 1.3")
    torch.testing.assert_close(at(page, [(x, y)]), under, atol=1e-5, rtol=0)
    page.mouse.down()
    page.mouse.move(x + 40, y - 25, steps=3)
    page.mouse.up()
    torch.testing.assert_close(at(page, [(x + 40, y - 25)]), under, atol=1e-5, rtol=0)
    assert state(page, "s.ends") == []  # a drag is not a click
    page.locator("#fit").click()
    assert page.evaluate("explorer.view") == {"x": 0, "y": 0, "zoom": 1}

    page.locator("#map").focus()
    before, digit = state(page, "[...s.z]"), canvas(page, "#digit")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowUp")
    after = state(page, "[...s.z]")
    assert 0 < after[0] - before[0] < after[1] - before[1]
    assert not torch.equal(digit, canvas(page, "#digit"))
    page.keyboard.press("+")
    assert page.evaluate("explorer.view.zoom") > 1
    page.keyboard.press("Home")
    assert page.evaluate("explorer.view.zoom") == 1


def test_two_clicks_interpolate(open_page, written):
    model, page = written["mlp"][0], open_page()
    for image in (3, 7):
        page.mouse.click(*hover(page, image))
    a, b = torch.tensor(state(page, "s.ends.map(({z}) => [...z])"))
    assert (a - b).norm() > 0.1
    strip = canvas(page, "#strip").view(28, 11, 28).transpose(0, 1)
    line = a + torch.linspace(0, 1, 11)[:, None] * (b - a)
    assert_pixels(strip, decoded(model, line))

    page.wait_for_function("explorer.state.t > 0.05")  # it plays by itself
    page.locator("#play").click()
    t = state(page, "s.t")
    assert_pixels(canvas(page, "#frame-now"), decoded(model, a + t * (b - a))[0])
    page.wait_for_timeout(100)
    assert state(page, "s.t") == t
    page.locator("#t").fill("0.5")
    assert state(page, "s.t") == 0.5
    page.locator("#map").focus()
    page.keyboard.press("Escape")
    assert page.locator("#strip").is_hidden()


def test_a_drawn_digit_is_encoded_as_mnist_would_have_it(open_page, written):
    model, page = written["mlp"][0], open_page(viewport={"width": 1000, "height": 1000})
    box = page.locator("#pad").bounding_box()
    page.mouse.move(box["x"] + 20, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 60, box["y"] + 20, steps=4)
    page.mouse.move(box["x"] + 40, box["y"] + 90, steps=4)
    page.mouse.up()
    x = torch.tensor(state(page, "[...s.drawing.pixels]")).view(1, 1, 28, 28)
    inked_rows = (x[0, 0].amax(dim=1) > 0.1).nonzero()
    assert 19 <= inked_rows.max() - inked_rows.min() + 1 <= 21  # the longer side has 20
    for dim in (0, 1):
        centre_of_mass = x[0, 0].sum(dim=dim) @ torch.arange(28.0) / x.sum()
        assert centre_of_mass.item() == pytest.approx(13.5, abs=0.6)
    with torch.no_grad():
        mu, _ = model.encode(x)
    assert torch.allclose(torch.tensor(state(page, "[...s.drawing.mu]")), mu[0], atol=0.05)
    assert state(page, "[...s.z]") == state(page, "[...s.drawing.mu]")
    assert page.locator("#title").inner_text() == "Your drawing"
    page.locator("#clear").click()
    assert state(page, "s.drawing") is None


def test_the_density_is_the_mixture_of_the_posteriors(open_page, written):
    model, page = written["mlp"][0], open_page()
    assert canvas(page, "#backdrop", "A").max() == 0
    page.get_by_text("Density").click()
    page.wait_for_timeout(600)
    opacity = canvas(page, "#backdrop", "A")
    rows, columns = (torch.arange(5, n, 10) for n in opacity.shape)
    z, (_, mu, logvar) = on_the_map(page, rows, columns), encoded(model, N_IMAGES)
    density = gaussian_log_prob(z[:, None], mu, logvar).exp().mean(dim=1)
    level = (opacity[rows][:, columns].flatten() / 0.07).round()
    expected = (9 + torch.floor(torch.log2(density / density.max() + 1e-9))).clamp(min=0)
    assert len(expected.unique()) > 5
    assert ((level - expected).abs() <= 1).float().mean() > 0.98  # at edges, one step more or less


def test_the_manifold_is_the_decoders_and_none_clears_it(open_page, written):
    model, page = written["mlp"][0], open_page()
    page.get_by_text("Manifold").click()
    page.wait_for_function("() => new Promise((done) => setTimeout(() => done(true), 1500))")
    opacity = canvas(page, "#backdrop", "A")
    tile = min(48, max(24, min(opacity.shape) / 16))
    step = tile / page.evaluate("explorer.place([1, 0])[0] - explorer.place([0, 0])[0]")
    box = page.locator("#map").bounding_box()
    for i, j in ((0, 0), (3, -2), (-4, 1)):  # a tile's mean ink is that of its middle's digit
        x, y = page.evaluate("explorer.place", [i * step, j * step])
        left, top = round(x - box["x"] - tile / 2), round(y - box["y"] - tile / 2)
        ink = opacity[top : top + round(tile), left : left + round(tile)].mean().item()
        truth = 0.75 * decoded(model, [i * step, j * step]).mean().item()
        assert ink == pytest.approx(truth, abs=0.03)
    page.get_by_text("Points", exact=True).click()
    page.wait_for_timeout(200)
    assert canvas(page, "#backdrop", "A").max() == 0


@pytest.mark.parametrize("name", ["sharp", "flow", "conv_2d"])
def test_the_posterior_has_the_exact_log_p_x_and_the_elbo(name, open_page, written):
    model, page = written[name][0], open_page(name)
    page.get_by_text("Posterior").click()
    exact = exact_nll(model, load_mnist(DATA_DIR, "test")[0][:3], n_grid=65)[0]
    for i, (x, mu, logvar) in enumerate(zip(*encoded(model, 3), strict=True)):
        page.evaluate(f"explorer.show({i})")
        shown = answer(page)
        eps = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(i))
        z = model.reparameterize(mu, logvar, eps)
        log_w = log_joint(model, z, x) - gaussian_log_prob(z, mu, logvar)  # (20000,)
        error = 4 * log_w.std() / len(log_w) ** 0.5
        assert shown["logP"] == pytest.approx(-exact[i].item(), abs=0.02)
        assert shown["bound"] == pytest.approx(log_w.mean().item(), abs=0.01 + error.item())
        nats = {"nll": -shown["logP"], "neg-elbo": -shown["bound"]}
        nats["gap"] = shown["logP"] - shown["bound"]
        for row, value in nats.items():
            assert page.locator(f"#{row}").inner_text() == f"{value:.1f} nats"


def test_the_shading_is_the_posterior(open_page, written):
    model, page = written["flow"][0], open_page("flow")
    page.evaluate("explorer.show(3)")
    page.get_by_text("Posterior").click()
    answer(page)
    page.wait_for_timeout(1500)  # the map has moved to it
    opacity = canvas(page, "#backdrop", "A")
    rows, columns = (torch.arange(2, n, 4) for n in opacity.shape)
    z, x = on_the_map(page, rows, columns), load_mnist(DATA_DIR, "test")[0][3] / 255
    density = log_joint(model, z, x).softmax(dim=0)  # over all that is on the map
    densest = density.sort(descending=True).values
    shares = torch.tensor([0.5, 0.9, 0.99])
    least = densest[torch.searchsorted(densest.cumsum(dim=0), shares)]  # of each level
    expected = (density[:, None] >= least).sum(dim=1)  # 3 in the densest region, 0 outside
    shown = opacity[rows][:, columns].flatten()
    level = (shown[:, None] > torch.tensor([0.25, 0.45, 0.7])).sum(dim=1)
    assert expected.bincount().min() > 20
    assert (level == expected).float().mean() > 0.97  # at the edges a cell more or less
    assert (level - expected).abs().max() <= 1


def test_a_posterior_stays_till_a_click_chooses_another_image(open_page):
    page = open_page()
    page.get_by_text("Posterior").click()
    answer(page)
    page.locator("#fit").click()
    x, y = hover(page, 7)
    assert state(page, "s.index") == 0
    page.mouse.click(x, y)
    assert state(page, "[s.ends.length, s.index !== 0]") == [0, True]  # and no interpolation
    answer(page)
    assert page.locator("#scale").is_visible()
    assert page.locator("#interpolation").is_hidden()
    page.get_by_text("Points", exact=True).click()
    for name in ("#nll", "#scale"):
        assert page.locator(name).is_hidden()
    page.wait_for_timeout(200)
    assert canvas(page, "#backdrop", "A").max() == 0


def test_more_dimensions_have_sliders_by_kl(open_page, written):
    model, page = written["conv"][0], open_page("conv")
    kl, order = page.evaluate("[explorer.content.kl, explorer.content.sliders]")
    assert [kl[d] for d in order] == sorted(kl, reverse=True)  # all five units are active
    assert page.evaluate("explorer.content.plane") == order[:2]
    assert page.locator("#posterior").is_hidden()  # a grid over five is too much
    sliders = page.locator("#sliders input")
    assert sliders.count() == 5
    sliders.nth(3).fill("1.5")
    z = state(page, "[...s.z]")
    assert z[order[3]] == pytest.approx(1.5, abs=0.02)
    assert_pixels(canvas(page, "#digit"), decoded(model, z)[0])


def test_a_phone_has_digit_and_map_on_one_screen(open_page):
    phone = {"viewport": {"width": 360, "height": 640}, "device_scale_factor": 2}
    page = open_page(has_touch=True, is_mobile=True, **phone)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    digit, box = page.locator("#digit").bounding_box(), page.locator("#map").bounding_box()
    assert digit["y"] + digit["height"] < box["y"]
    assert box["y"] + box["height"] < 640
    before = canvas(page, "#digit")
    page.touchscreen.tap(box["x"] + 60, box["y"] + 60)
    assert not torch.equal(before, canvas(page, "#digit"))
    assert len(state(page, "s.ends")) == 1


def test_what_the_page_cannot_carry_is_a_sentence(tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match="layer of type ReLU"):
        explorer.list_layers(nn.Sequential(nn.ReLU()), explorer.Payload(), torch.int16)
    with pytest.raises(UserError, match="at least 2 latent dimensions"):
        write_page(tmp_path, monkeypatch, random_model(latent_dim=1, width=8))
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match="cannot be written"):
        write_page(tmp_path, monkeypatch, random_model(width=8))
    (tmp_path / "out").unlink()
    coarse = random_model(width=8, n_blocks=1)
    nn.init.normal_(coarse.decoder[-1].weight, std=10_000)
    with pytest.raises(UserError, match="change visibly"):
        write_page(tmp_path, monkeypatch, coarse)
    model = random_model(width=64, n_blocks=1)
    size = write_page(tmp_path, monkeypatch, model).stat().st_size
    monkeypatch.setattr(explorer, "MAX_BYTES", size - 1)
    assert '"encoder": null' in write_page(tmp_path, monkeypatch, model).read_text()
    assert "no drawing pad" in capsys.readouterr().out
    monkeypatch.setattr(explorer, "MAX_BYTES", 10_000)
    with pytest.raises(UserError, match="smaller --n_images"):
        write_page(tmp_path, monkeypatch, model)
