"""vis/explorer: the page in a real browser. What it shows is compared with the model itself."""

import base64
import functools
import io
import re
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ENVIRONMENT, ROOT, random_model, save_model
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

import vis.explorer.main as explorer
from checkpoint import load_checkpoint
from data import SPLITS, binarize, load_mnist
from estimators import Gaussians, log_joint
from loss import bernoulli_nll, gaussian_log_prob
from model import VAE
from utils.cli import DATA_DIR, UserError
from vis.posterior.true_posterior import exact_elbo, true_posteriors

pytestmark = pytest.mark.xdist_group("explorer")  # each page is built once
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
OFFLINE = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
OFFLINE += ["--disable-component-update", "--disable-sync"]
N_IMAGES = 400
TOLERANCE = 2 / 255  # of a pixel in [0, 1]
TWO_D, MANY_D = ("vae_mnist", "vae_mnist_2d_dynamic"), ("vae_mnist_40d", "vae_mnist_40d_flow")
WEIGHTS = (*TWO_D, *MANY_D)  # of pretrained/
RANDOM = {  # odd widths, so that no loop's remainder stays untested
    "mlp": lambda: random_model(width=30, n_blocks=2),
    "conv": lambda: random_model(arch="conv", latent_dim=5, width=10),
    "flow": lambda: random_model(width=30, n_blocks=2, prior="flow"),
    "flow_3d": lambda: random_model(latent_dim=3, width=30, prior="flow"),  # halves of 1 and 2
}


def write_page(folder, monkeypatch, path):
    flags = ["--model_params", path, "--device", "cpu"]
    flags += ["--save_dir", folder / "out", "--n_images", N_IMAGES]
    monkeypatch.setattr("sys.argv", ["main.py", *map(str, flags)])
    monkeypatch.setitem(SPLITS, "test", ("t10k", 10_000, slice(0, 1000)))  # for speed
    explorer.main()
    return folder / "out" / "explorer.html"


def canvas(page, selector: str, channel: str = "R") -> torch.Tensor:
    """One channel of a canvas, "R", "G", "B" or "A", in [0, 1]: (height, width)."""
    png = page.locator(selector).evaluate("canvas => canvas.toDataURL()").split(",")[1]
    return pil_to_tensor(Image.open(io.BytesIO(base64.b64decode(png))).getchannel(channel))[0] / 255


@torch.no_grad()
def decoded(model: VAE, u) -> torch.Tensor:
    """u (..., L), which is z without a flow -> (n, 28, 28) in [0, 1]"""
    u = torch.as_tensor(u).float().reshape(-1, model.config.latent_dim)
    return torch.sigmoid(model.decode(model.prior.from_normal(u)))[:, 0]


@torch.no_grad()
def encoded(model: VAE, n: int, binarized="none") -> tuple[torch.Tensor, ...]:
    """The first n test images x (n, 1, 28, 28), and their mu and logvar (n, L)."""
    x = binarize(load_mnist(DATA_DIR, "test")[0][:1000], binarized)[:n] / 255
    return x, *model.encode(x)


def at(page, points) -> torch.Tensor:
    """The coordinates on the map (n, 2) of points of the screen (n, 2)."""
    return torch.tensor(page.evaluate("ps => ps.map((p) => explorer.at(...p))", points))


def on_the_map(page, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """The coordinates (rows * columns, 2) of some pixels of the map's canvas."""
    box = page.locator("#map").bounding_box()
    y, x = torch.cartesian_prod(box["y"] + rows + 0.5, box["x"] + columns + 0.5).T
    return at(page, torch.stack((x, y), dim=1).tolist())


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
    x, y = page.evaluate(f"explorer.place(explorer.testImage({image}).u)")
    page.mouse.move(round(x), round(y))
    return round(x), round(y)


def settled(page) -> dict:
    """The terms of the image on the card, when the worker has found them."""
    page.wait_for_function("explorer.state.subject.done", timeout=120_000)
    return state(page, "({ recon: s.subject.recon, kl: s.subject.kl, stderr: s.subject.stderr })")


def nats(page, row: str) -> float:
    """A number of the card."""
    return float(re.fullmatch(r"~?([\d.]+) nats", page.locator(f"#{row}").inner_text())[1])


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=OFFLINE)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(model, path of its page, its binarization) by a name of RANDOM or WEIGHTS."""

    @functools.cache
    def write(name: str):
        folder = tmp_path_factory.mktemp(name)
        path = ROOT / f"pretrained/{name}.pth"
        with pytest.MonkeyPatch.context() as patch:
            if name in RANDOM:
                path = save_model(folder / "model.pth", RANDOM[name]())
                patch.setattr(explorer, "N_CHOSEN_FROM", 3)  # for speed: no test uses its presets
            model, checkpoint = load_checkpoint(path, "cpu")
            page = write_page(folder, patch, path)
        return model.requires_grad_(False), page, checkpoint["args"]["binarize"]

    return write


@pytest.fixture
def open_page(browser, written):
    """Opens a page by its model's name; in the end nothing has gone wrong or been fetched."""
    contexts, troubles, requested = [], [], []

    def open_(name: str = "mlp", address: str = "", **options):
        context = browser.new_context(**({"viewport": {"width": 1000, "height": 700}} | options))
        contexts.append(context)
        page = context.new_page()
        url = name if ":" in name else written(name)[1].as_uri()
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: requested.append((url, request.url)))
        page.goto(url + address)
        page.wait_for_function("window.explorer")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert troubles == []
    for own, url in requested:
        assert url.startswith((own, "blob:"))  # the page, and the worker that it starts


def test_the_workflow_builds_the_page_of_the_repository(tmp_path, open_page):
    workflow = (ROOT / ".github/workflows/pages.yml").read_text()
    build = re.search(r"run: \|\n((?: +python3 vis/explorer.*\n)(?: +mv .*\n))", workflow)[1]
    (site,) = re.findall(r"path: (\w+)\n", workflow)
    for folder in ("vis", "pretrained"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    build = build.replace("python3", sys.executable)
    subprocess.run(["bash", "-euc", build], cwd=tmp_path, env=ENVIRONMENT, check=True)
    path = tmp_path / site / "index.html"
    assert path.stat().st_size < 10_000_000
    page = open_page(path.as_uri())
    assert page.locator("#draw").is_visible()  # the encoder is there too
    assert page.locator("#image").get_attribute("max") == "9999"


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_pinned_image_stays_on_the_card_and_the_address_carries_it(name, open_page):
    page = open_page(name)
    here, there = hover(page, 20), hover(page, 31)
    preview = state(page, "s.index")
    page.mouse.move(*here)
    assert state(page, "s.index") != preview  # hovering previews
    page.mouse.click(*here)
    index = state(page, "s.pinned")
    assert page.evaluate("location.hash") == f"#image={index}"
    page.mouse.move(*there, steps=5)
    page.mouse.move(640, 40, steps=10)  # to the buttons
    assert state(page, "[s.index, s.pinned]") == [index, index]
    page.keyboard.press("Escape")
    assert state(page, "s.pinned") == -1
    page.locator("#image").fill("45")
    page.locator("#image").press("Enter")
    page.locator("#modes [value=manifold]").check()
    assert page.evaluate("location.hash") == "#image=45&mode=manifold"
    page.evaluate("location.hash = '#image=7'")
    page.wait_for_function("explorer.state.pinned === 7 && explorer.state.mode === 'points'")


@pytest.mark.parametrize("name", TWO_D)
def test_presets_and_addresses_show_posteriors(name, open_page):
    page, gaps = open_page(name, "#image=45&mode=posterior"), []
    assert state(page, "[s.pinned, s.mode]") == [45, "posterior"]
    presets = page.evaluate("explorer.content.presets")
    for index, button in zip(presets, page.locator("#presets button").all(), strict=True):
        button.click()
        answer(page)
        settled(page)
        assert page.evaluate("location.hash") == f"#image={index}&mode=posterior"
        gaps.append(nats(page, "gap"))
        assert nats(page, "neg-elbo") == pytest.approx(nats(page, "nll") + gaps[-1], abs=0.16)
    assert gaps[1] > 5  # the encoder is far off
    assert gaps[2] < 0.5  # a good fit
    page.keyboard.press("Escape")  # a posterior needs a pinned image
    assert state(page, "[s.pinned, s.mode]") == [-1, "points"]
    page.wait_for_function("explorer.view.zoom === 1")  # the view before


@pytest.mark.parametrize("name", ["flow", *WEIGHTS])
def test_the_terms_of_the_card_are_the_models(name, open_page, written):
    model, _, binarized = written(name)
    page, is_plane = open_page(name), model.config.latent_dim == 2
    x, *q = (part[1:] for part in encoded(model, 2, binarized))
    eps = torch.randn(2000, 1, q[0].shape[1], generator=torch.Generator().manual_seed(1))
    z = model.reparameterize(*q, torch.cat((eps, -eps)))  # (4000, 1, L): mirrored pairs
    recon = bernoulli_nll(model.decode(z), x).view(2, -1).mean(dim=0)
    kl = model.prior.kl(*q, z).view(2, -1).mean(dim=0)
    if is_plane:
        page.locator("#modes [value=posterior]").check()
    page.evaluate("explorer.pin(1)")
    shown = settled(page)
    assert page.locator("#title").inner_text() == "Test image 1, a 2"
    assert torch.equal(canvas(page, "#original"), x[0, 0])
    assert_pixels(canvas(page, "#reconstruction"), model.decode(q[0])[0, 0].sigmoid())
    rounding = 0.06 if is_plane or shown["stderr"] < 0.05 else 0.6
    for row, draws in (("recon", recon), ("kl", kl)):
        near = 0.02 + 4 * (draws.std().item() / len(draws) ** 0.5 + shown["stderr"])
        assert shown[row] == pytest.approx(draws.mean().item(), abs=near)
        assert nats(page, row) == pytest.approx(shown[row], abs=rounding)
    total = shown["recon"] + shown["kl"]
    assert nats(page, "neg-elbo") == pytest.approx(total, abs=rounding)
    assert page.locator("#neg-elbo").inner_text().startswith("~") != is_plane
    if is_plane:
        image = (255 * x).to(torch.uint8)
        log_p = true_posteriors(model, image, 100)[0].log_evidence
        assert total == pytest.approx(-exact_elbo(model, image, Gaussians(*q)).item(), abs=0.02)
        assert answer(page)["logP"] == pytest.approx(log_p, abs=0.02)
        assert nats(page, "nll") == pytest.approx(-log_p, abs=0.07)


OVERLAPS = """() => {
  const all = "h1, #lead, button, label, #frame, h2, dl, input, p, figure";
  const parts = [...document.querySelectorAll(all)].filter((part) => part.checkVisibility());
  const boxes = parts.map((part) => part.getBoundingClientRect());
  const meets = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;
  return parts.flatMap((a, i) => parts.slice(i + 1)
    .filter((b, k) => !a.contains(b) && meets(boxes[i], boxes[i + 1 + k]))
    .map((b) => [a, b].map((part) => part.outerHTML.slice(0, 60))));
}"""


@pytest.mark.parametrize(("touch", "widths"), [(True, (360, 800)), (False, (1024, 1280))])
@pytest.mark.parametrize("name", WEIGHTS)
def test_nothing_overlaps_at_any_width(name, touch, widths, open_page):
    page = open_page(name, has_touch=touch, is_mobile=touch)
    for width in widths:
        page.set_viewport_size({"width": width, "height": 740})
        assert page.evaluate(OVERLAPS) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        if touch:
            buttons = page.locator("button:not(.word):visible").all()
            boxes = [button.bounding_box() for button in buttons]
            assert min(min(box["width"], box["height"]) for box in boxes) >= 44
            box = page.locator("#map").bounding_box()
            assert box["y"] + box["height"] < 740  # the map is on the first screen


@pytest.mark.parametrize("name", ["mlp", "conv", "flow_3d"])
def test_the_network_is_the_models_own_wherever_the_map_can_go(name, open_page, written):
    model, page = written(name)[0], open_page(name)
    reach, plane = page.evaluate("[explorer.content.reach, explorer.content.plane]")
    rng = torch.Generator().manual_seed(1)
    u = 2 * torch.rand(100, model.config.latent_dim, generator=rng) - 1
    u[:, plane] *= explorer.FARTHEST
    u[:4, plane] = explorer.FARTHEST * torch.tensor([[-1.0, -1], [-1, 1], [1, -1], [1, 1]])
    u *= reach
    shown = page.evaluate("us => us.map((u) => [...explorer.decode(u)])", u.tolist())
    truth = decoded(model, u)
    assert truth.std(dim=0).mean() > 0.05  # or the comparison would say little
    assert_pixels(torch.tensor(shown).view(-1, 28, 28), truth)
    x, *q = encoded(model, 20)
    encode = "x => { const q = explorer.encode(x); return [[...q.mu], [...q.logvar]]; }"
    found = torch.tensor(page.evaluate(f"xs => xs.map({encode})", x.flatten(1).tolist()))
    assert (found - torch.stack(q, dim=1)).abs().max() < 0.05 * q[0].std()  # 8 bits a weight
    box = page.locator("#map").bounding_box()  # and the large digit follows the pointer
    x, y = box["x"] + 0.98 * box["width"], box["y"] + 0.02 * box["height"]
    page.mouse.move(x, y)
    u = state(page, "[...s.u]")
    assert at(page, [(x, y)])[0].tolist() == pytest.approx([u[d] for d in plane], abs=1e-3)
    assert_pixels(canvas(page, "#digit"), decoded(model, u)[0])


def test_a_sample_of_q_is_eps_scaled_and_moved(open_page):
    page = open_page(reduced_motion="reduce")
    page.locator("#sample-prior").click()
    assert state(page, "s.samples.every(({picture}) => picture)")  # digits appear on the map
    page.evaluate("explorer.pin(3)")
    page.locator("#sample-q").click()
    eps, z = torch.tensor(state(page, "[s.samples.map((a) => a.from), s.samples.map((a) => a.to)]"))
    mu, logvar = torch.tensor(state(page, "[[...s.subject.mu], [...s.subject.logvar]]"))
    torch.testing.assert_close(z, mu + torch.exp(0.5 * logvar) * eps)


def test_an_interpolation_is_a_straight_line_and_plays(open_page, written):
    model, page = written("mlp")[0], open_page()
    page.mouse.click(*hover(page, 3))
    page.locator("#from").click()
    page.mouse.click(*hover(page, 7))
    a, b = torch.tensor(state(page, "s.ends.map(({u}) => [...u])"))
    assert state(page, "[...s.subject.u]") == pytest.approx(a.tolist())  # A is the pinned image
    strip = canvas(page, "#strip").view(28, 11, 28).transpose(0, 1)
    line = a + torch.linspace(0, 1, 11)[:, None] * (b - a)
    assert_pixels(strip, decoded(model, line))
    page.wait_for_function("explorer.state.t > 0.05")  # it plays by itself


def test_a_drawn_digit_is_encoded_as_mnist_would_have_it(open_page, written):
    model, page = written("mlp")[0], open_page(viewport={"width": 1000, "height": 1000})
    box = page.locator("#pad").bounding_box()
    page.mouse.move(box["x"] + 20, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 60, box["y"] + 20, steps=4)
    page.mouse.move(box["x"] + 40, box["y"] + 90, steps=4)
    page.mouse.up()
    x = torch.tensor(state(page, "[...s.drawing.pixels]")).view(1, 1, 28, 28)
    assert 19 <= (x[0, 0].amax(dim=1) > 0.1).sum() <= 21  # the longer side has 20
    for dim in (0, 1):
        centre_of_mass = x[0, 0].sum(dim=dim) @ torch.arange(28.0) / x.sum()
        assert centre_of_mass.item() == pytest.approx(13.5, abs=0.6)
    assert torch.allclose(torch.tensor(state(page, "[...s.u]")), model.encode(x)[0], atol=0.05)


def test_the_density_is_the_mixture_of_the_posteriors(open_page, written):
    model, page = written("mlp")[0], open_page()
    page.locator("#modes [value=density]").check()
    page.wait_for_timeout(600)
    opacity = canvas(page, "#backdrop", "A")
    rows, columns = (torch.arange(5, n, 10) for n in opacity.shape)
    z, (_, mu, logvar) = on_the_map(page, rows, columns), encoded(model, N_IMAGES)
    density = gaussian_log_prob(z[:, None], mu, logvar).exp().mean(dim=1)
    level = (opacity[rows][:, columns].flatten() / 0.07).round()
    expected = (9 + torch.floor(torch.log2(density / density.max() + 1e-9))).clamp(min=0)
    assert len(expected.unique()) > 5
    assert ((level - expected).abs() <= 1).float().mean() > 0.98  # at edges, one step more or less


def test_the_shading_is_the_posterior(open_page, written):
    model, page = written("flow")[0], open_page("flow", "#image=3&mode=posterior")
    answer(page)
    page.wait_for_timeout(1500)  # the map has moved to it
    opacity = canvas(page, "#backdrop", "A")
    rows, columns = (torch.arange(2, n, 4) for n in opacity.shape)
    u, x = on_the_map(page, rows, columns), load_mnist(DATA_DIR, "test")[0][3] / 255
    density = log_joint(model, x.flatten(1), u)[0].softmax(dim=0)  # over all that is on the map
    densest = density.sort(descending=True).values
    shares = torch.tensor([0.5, 0.9, 0.99])
    least = densest[torch.searchsorted(densest.cumsum(dim=0), shares)]  # of each level
    expected = (density[:, None] >= least).sum(dim=1)  # 3 in the densest region, 0 outside
    shown = opacity[rows][:, columns].flatten()
    level = (shown[:, None] > torch.tensor([0.25, 0.45, 0.7])).sum(dim=1)
    assert expected.bincount().min() > 20
    assert (level == expected).float().mean() > 0.97  # at the edges a cell more or less
    assert (level - expected).abs().max() <= 1


@pytest.mark.parametrize("name", MANY_D)
def test_more_dimensions_have_sliders_by_kl(name, open_page, written):
    model, page = written(name)[0], open_page(name)
    kl, order = page.evaluate("[explorer.content.kl, explorer.content.sliders]")
    assert [kl[d] for d in order] == sorted((value for value in kl if value >= 0.05), reverse=True)
    assert page.evaluate("explorer.content.plane") == order[:2]
    page.locator("#all-sliders").click()
    sliders = page.locator("#sliders input:visible")
    assert sliders.count() == len(order)
    sliders.nth(3).fill("1.5")
    u = state(page, "[...s.u]")
    assert u[order[3]] == pytest.approx(1.5, abs=0.02)
    assert_pixels(canvas(page, "#digit"), decoded(model, u)[0])


def test_a_page_that_becomes_too_large_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(explorer, "MAX_BYTES", 10_000)
    with pytest.raises(UserError, match="smaller --n_images"):
        write_page(tmp_path, monkeypatch, save_model(tmp_path / "model.pth", RANDOM["flow_3d"]()))
