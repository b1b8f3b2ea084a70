"""The explorer in a browser: its numbers against Python's, and dragging by mouse, touch and keys."""

import json
import shutil

import numpy as np
import pytest
import torch

from giou_repro import LOSSES, boxes, explore
from giou_repro.explorer import SHOWN
from giou_repro.simulation import cases, simulate

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome")
IMPORT = "import('data:text/javascript,' + encodeURIComponent(source))"


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, tmp_path):
    context = browser.new_context(has_touch=True, viewport={"width": 900, "height": 900})
    page, problems = context.new_page(), []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: problems.append(request.url) if request.url.startswith("http") else None)
    file = tmp_path / "explorer.html"
    file.write_text(explore().page, encoding="utf-8")
    page.goto(file.as_uri())
    yield page
    context.close()
    assert problems == []


def in_javascript(page, expression, argument):
    """The value of an expression of explore.js's exports (m) and of an argument (a)."""
    source = page.evaluate("document.querySelector('script').textContent").rpartition("mount(")[0]
    function = f"async ([source, a]) => {{ const m = await {IMPORT}; return {expression}; }}"
    return page.evaluate(function, [source, argument])


@pytest.mark.parametrize("name", SHOWN)
@pytest.mark.parametrize("encoding", ["xyxy", "cxcywh"])
def test_values_and_gradients_are_those_of_python(page, name, encoding):
    draw = np.random.default_rng(0)
    corner, side = draw.uniform(0, 6, (2, 200, 2)), draw.uniform(0.1, 4, (2, 200, 2))
    pred, target = torch.tensor(np.concatenate((corner, corner + side), -1))
    state, goal = (boxes.convert(box, "xyxy", encoding) for box in (pred, target))
    state.requires_grad_()
    is_overlap = LOSSES[name].space == "boxes"
    loss = LOSSES[name](*(boxes.convert(box, encoding, "xyxy") if is_overlap else box for box in (state, goal)))
    (gradient,) = torch.autograd.grad(loss.sum(), state)
    pairs = list(zip(state.tolist(), goal.tolist(), strict=True))
    found = in_javascript(page, "a[0].map(([p, t]) => m.evaluate(a[1], p, t, a[2]))", [pairs, name, encoding])
    np.testing.assert_allclose([row["value"] for row in found], loss.detach(), rtol=0, atol=1e-9)
    np.testing.assert_allclose([row["gradient"] for row in found], gradient, rtol=0, atol=1e-9)


@pytest.mark.parametrize("gradients, names", [("exact", SHOWN), ("published", ("iou", "giou", "diou", "ciou"))])
def test_a_box_let_go_goes_the_way_of_the_simulation(page, gradients, names):
    case = cases.case_number(1, target=4, area=6, shape=2)
    options = dict(points=[(12.2, 11.1)], trajectories=[case], schedule="constant", dtype="float64", steps=60)
    ways = simulate(names, gradients=gradients, compile=False, progress=False, **options).trajectories
    goal = [*cases.CENTRE, *cases.SHAPES[3]]
    for name, way in ways.groupby("loss"):
        boxes_ = way[["x", "y", "w", "h"]].to_numpy()
        options = dict(encoding="cxcywh", gradients=gradients, rate=0.1)
        expression = "Array.from({length: 60}).reduce(p => [...p, m.step(a[0], p.at(-1), a[2], a[3])], [a[1]])"
        found = in_javascript(page, expression, [name, boxes_[0].tolist(), goal, options])
        np.testing.assert_allclose(found, boxes_, rtol=0, atol=1e-9)


def view(page):
    return json.loads(page.evaluate("decodeURIComponent(location.hash.slice(1))"))


def position(page, x, y):
    frame = page.locator("svg").first.bounding_box()
    return frame["x"] + x / 8 * frame["width"], frame["y"] + y / 5.2 * frame["height"]


def test_mouse_moves_the_box_and_its_corner(page):
    for start, end in (((5.5, 2.5), (6, 3.5)), ((6.5, 4), (7, 4.5))):  # the centre, then the lower right corner
        page.mouse.move(*position(page, *start))
        page.mouse.down()
        page.mouse.move(*position(page, *end), steps=4)
        page.mouse.up()
        page.wait_for_timeout(50)
    np.testing.assert_allclose(view(page)["pred"], [5.5, 3, 7, 4.5], atol=0.02)
    assert "IoU 0.000" in page.inner_text("p[aria-live]")


def test_keys_move_the_box_and_the_distance_can_be_kept(page):
    page.locator("g.box").nth(1).focus()
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
        page.wait_for_timeout(30)
    np.testing.assert_allclose(view(page)["pred"], [4.8, 2, 5.8, 3])
    page.get_by_label("keep the ℓ2 distance").check()
    page.locator("g.box").nth(1).focus()
    page.keyboard.press("ArrowDown")
    page.wait_for_timeout(50)
    assert np.linalg.norm(np.subtract(view(page)["pred"], view(page)["target"])) == pytest.approx(2.3 * 2**0.5)


def test_touch_moves_the_target(page):
    session = page.context.new_cdp_session(page)
    for kind, place in (("touchStart", (3, 2.5)), ("touchMove", (2, 1.5)), ("touchEnd", None)):
        points = [dict(zip("xy", position(page, *place), strict=True))] if place else []
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        page.wait_for_timeout(50)
    np.testing.assert_allclose(view(page)["target"], [1.5, 1, 2.5, 2], atol=0.02)


def test_published_giou_stands_still_level_with_its_target_until_repaired(page):
    def ends_at():
        page.locator("input[type=range]").nth(1).fill("200")
        return float(page.get_by_text("IoU at step").inner_text().rpartition(" ")[2])

    page.get_by_label("gradients").select_option("published")
    assert ends_at() == 0
    page.get_by_label("gradients").select_option("repaired")
    assert ends_at() > 0.9


def test_view_of_an_address_is_shown_again(page):
    page.get_by_text("far apart").click()
    page.reload()
    assert view(page)["pred"] == [6.8, 4.3, 7.4, 4.9]


def test_losses_it_does_not_have_are_refused():
    with pytest.raises(ValueError, match="not siou"):
        explore(["giou", "siou"])
