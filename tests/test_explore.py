"""The explorer in a browser: its numbers against Python's; mouse, touch and keys; a user's loss; the surface of 03."""

import json
import re
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch

from giou_repro import LOSSES, boxes, explore, loss
from giou_repro.experiments.surface import surface
from giou_repro.explorer import SHOWN, answers
from giou_repro.runs import pages
from giou_repro.simulation import cases, simulate

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome")
SOURCE = Path(answers.__file__).with_name("explore.js").read_text(encoding="utf-8")
IMPORT = "import('data:text/javascript,' + encodeURIComponent(source))"


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def show(browser, tmp_path):
    """Open HTML as a file, with the net cut, in a context of some options; no errors and no requests may come of it."""
    problems, contexts = [], []

    def show(html, address="", **options):
        contexts.append(browser.new_context(**{"viewport": {"width": 900, "height": 900}, "has_touch": True} | options))
        contexts[-1].set_offline(True)
        page = contexts[-1].new_page()
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: problems.append(request.url) if request.url.startswith("http") else None)
        file = tmp_path / "explorer.html"
        file.write_text(html, encoding="utf-8")
        page.goto(file.as_uri() + address)
        return page

    yield show
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture
def page(show):
    return show(explore().page)


@pytest.fixture(scope="module")
def blank(browser):
    page = browser.new_page()
    yield page
    page.close()


def in_javascript(page, expression, argument):
    """The value of an expression of explore.js's exports (m) and of an argument (a)."""
    function = f"async ([source, a]) => {{ const m = await {IMPORT}; return {expression}; }}"
    return page.evaluate(function, [SOURCE, argument])


@pytest.mark.parametrize("name", SHOWN)
@pytest.mark.parametrize("encoding", ["xyxy", "cxcywh"])
def test_values_and_gradients_are_those_of_python(blank, name, encoding):
    draw = np.random.default_rng(0)
    corner, side = draw.uniform(0, 6, (2, 200, 2)), draw.uniform(0.1, 4, (2, 200, 2))
    pred, target = torch.tensor(np.concatenate((corner, corner + side), -1))
    state, goal = (boxes.convert(box, "xyxy", encoding) for box in (pred, target))
    state.requires_grad_()
    is_overlap = LOSSES[name].space == "boxes"
    loss = LOSSES[name](*(boxes.convert(box, encoding, "xyxy") if is_overlap else box for box in (state, goal)))
    (gradient,) = torch.autograd.grad(loss.sum(), state)
    pairs = list(zip(state.tolist(), goal.tolist(), strict=True))
    found = in_javascript(blank, "a[0].map(([p, t]) => m.evaluate(a[1], p, t, a[2]))", [pairs, name, encoding])
    np.testing.assert_allclose([row["value"] for row in found], loss.detach(), rtol=0, atol=1e-9)
    np.testing.assert_allclose([row["gradient"] for row in found], gradient, rtol=0, atol=1e-9)


@pytest.mark.parametrize("gradients, names", [("exact", SHOWN), ("published", ("iou", "giou", "diou", "ciou"))])
def test_a_box_let_go_goes_the_way_of_the_simulation(blank, gradients, names):
    case = cases.case_number(1, target=4, area=6, shape=2)
    options = dict(points=[(12.2, 11.1)], trajectories=[case], schedule="constant", dtype="float64", steps=60)
    ways = simulate(names, gradients=gradients, compile=False, progress=False, **options).trajectories
    goal = [*cases.CENTRE, *cases.SHAPES[3]]
    for name, way in ways.groupby("loss"):
        boxes_ = way[["x", "y", "w", "h"]].to_numpy()
        options = dict(encoding="cxcywh", gradients=gradients, rate=0.1)
        expression = "Array.from({length: 60}).reduce(p => [...p, m.step(a[0], p.at(-1), a[2], a[3])], [a[1]])"
        found = in_javascript(blank, expression, [name, boxes_[0].tolist(), goal, options])
        np.testing.assert_allclose(found, boxes_, rtol=0, atol=1e-9)


def view(page):
    page.wait_for_timeout(200)
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
        page.wait_for_timeout(50)  # a frame
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
        return float(re.search(r"GIoU (\S+) \(error", page.get_by_text("IoU at step").inner_text())[1])

    page.get_by_label("gradients").select_option("published")
    assert ends_at() == 0
    page.get_by_label("gradients").select_option("repaired")
    assert ends_at() > 0.9


def test_view_of_an_address_is_shown_again(page):
    page.get_by_text("far apart").click()
    page.get_by_label("beside").select_option("diou")
    assert view(page)["pred"] == [6.8, 4.3, 7.4, 4.9]
    page.reload()
    assert (view(page)["pred"], page.get_by_label("beside").input_value()) == ([6.8, 4.3, 7.4, 4.9], "diou")
    words = page.locator("code").text_content()
    assert eval(words).options["view"] == view(page)


@pytest.mark.parametrize("address", ["#a-heading", '#{"pred":[1,2],"first":"siou","rate":"fast","gradients":"no"}'])
def test_an_address_of_something_else_is_passed_over(show, address):
    page = show(explore().page, address)
    assert page.locator("code").text_content() == show(explore().page).locator("code").text_content()


def notebook_page(path, shown):
    """The exported page of a notebook with the output of a cell that shows an explorer."""
    output = nbformat.v4.new_output("display_data", {"text/html": shown._repr_mimebundle_()["text/html"]})
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("explore()", outputs=[output])])
    nbformat.write(book, path)
    return pages.exported(path)


@pytest.mark.parametrize("scheme, ink", [("light", "rgb(34, 34, 34)"), ("dark", "rgb(221, 221, 221)")])
def test_exported_notebook_on_a_phone(show, tmp_path, scheme, ink):
    page = show(
        notebook_page(tmp_path / "a.ipynb", explore()), color_scheme=scheme, viewport={"width": 390, "height": 800}
    )
    frame = page.frame_locator("iframe")
    box = frame.get_by_role("application", name="prediction")
    box.press("ArrowRight")
    assert view(page)["pred"] == pytest.approx([5.05, 2, 6.05, 3])
    assert "now at 5.05, 2.00, 6.05, 3.00" in box.get_attribute("aria-label")
    assert frame.locator(".giou").evaluate("e => getComputedStyle(e).color") == ink
    assert frame.locator(":root").evaluate("e => e.scrollWidth <= innerWidth")


def test_keys_alone_reach_everything(page):
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("(document.activeElement.ariaLabel ?? '') + document.activeElement.textContent"))
    heard = " ".join(reached)
    for what in ("target: arrow keys", "prediction: arrow keys", "figure 1", "far apart", "arrows of GIoU", "let go"):
        assert what in heard
    page.get_by_role("button", name="let go").press("Enter")
    page.wait_for_function("document.querySelector('.giou').textContent.includes('IoU at step 3')")


@pytest.fixture
def mine():
    loss("mine")(lambda pred, target: (pred - target).pow(2).sum(-1) / 10)
    yield "mine"
    del LOSSES["mine"]


def test_a_loss_of_ones_own_is_asked_of_python(show, mine):
    shown = explore(["giou", "l2", mine], first=mine)
    shown.options["wire"] = "a wire"
    page = show(shown.page)
    row = page.locator("tr", has_text="mine")
    assert row.inner_text().split() == ["mine", "1.250", "0.707"]  # of the boxes it was made with
    page.get_by_text("level").click()
    page.get_by_text("far apart").click()
    page.get_by_text("mine: computed by Python, and no kernel answers here").wait_for()
    assert row.inner_text().split() == ["mine", "–", "–"]
    page.expose_function("python", answers.answer)  # which the widget does in a notebook
    page.evaluate("""addEventListener("message", async ({ data }) => {
      if (data.question) postMessage({ explorer: data.explorer, ...(await python(data.question)) });
    })""")
    page.get_by_text("diagonal").click()
    page.get_by_text("IoU at step 0: mine").wait_for()
    assert row.inner_text().split() == ["mine", "1.600", "0.800"]
    assert page.locator("[role=status]").inner_text() == ""


def test_the_way_that_python_answers_is_that_of_the_simulation(blank):
    question = dict(pred=[5.0, 2, 6, 3.5], target=[2.5, 2, 3.5, 3], encoding="cxcywh", rate=0.1)
    answer = answers.answer(question | dict(names=["giou"], ways=["giou"]))["losses"]["giou"]
    start, goal = (boxes.convert(torch.tensor(question[key]), "xyxy", "cxcywh").tolist() for key in ("pred", "target"))
    options = dict(encoding="cxcywh", gradients="exact", rate=0.1)
    expression = "Array.from({length: 160}).reduce(p => [...p, m.step('giou', p.at(-1), a[1], a[2])], [a[0]])"
    found = in_javascript(blank, expression, [start, goal, options])
    found = boxes.convert(torch.tensor(found, dtype=torch.float64), "cxcywh", "xyxy")
    assert len(answer["way"]) == 201
    np.testing.assert_allclose(answer["way"][:161], found, rtol=0, atol=1e-9)


def test_what_a_users_function_raises_is_said(show, mine):
    loss(mine)(lambda pred, target: 1 / 0)
    shown = explore([mine])
    assert shown.options["answer"]["losses"][mine] == {"error": "ZeroDivisionError: division by zero"}
    assert "ZeroDivisionError" in show(shown.page).locator("[role=status]").inner_text()


def final(errors):
    """Simulation.final of four anchor points, left and right of, above and below the targets."""
    x, y = cases.CENTRE[0] + np.array([-2, 2, 0, 0]), cases.CENTRE[1] + np.array([0, 0, -2, 2])
    tables = [
        pd.DataFrame(dict(loss=n, point=range(1, 5), x=x, y=y, error=np.multiply(e, 343))) for n, e in errors.items()
    ]
    return pd.concat(tables)


def test_surface_and_the_order_of_the_losses(show):
    exact, published = final(dict(iou=[1, 1, 1, 1], giou=[0.01] * 4)), final(dict(iou=[1] * 4, giou=[0.5, 4, 0.1, 0.1]))
    ends = [dict(loss=n, step_size=s, error=e) for s in (0.1, 0.2) for n, e in (("iou", 1), ("giou", 4 * (s - 0.1)))]
    ends += [dict(loss="l2", step_size=s, error=s) for s in (0.1, 0.2)]
    drawn = surface(
        dict(exact=exact, published=published), 0.1, dict(cxcywh=pd.DataFrame(ends), xyxy=pd.DataFrame(ends))
    )
    page = show(explore(["l2", "iou", "giou"], target=(3.5, 3.5, 4.5, 4.5), surface=drawn).page)

    def order():
        return [row.split()[0] + " " + row.split()[-1] for row in page.locator("tr").all_inner_texts()[1:]]

    assert order() == ["GIoU 0.0", "ℓ2 0.10", "IoU 1.0"]
    page.get_by_label("step size").fill("0.21")
    assert order() == ["ℓ2 0.20", "GIoU 0.40", "IoU 1.0"]
    page.get_by_label("gradients").select_option("published")
    frame = page.locator("svg").first.bounding_box()
    page.mouse.click(frame["x"] + frame["width"] * 6 / 8, frame["y"] + frame["height"] * 4 / 8)
    np.testing.assert_allclose(view(page)["pred"], [5.5, 3.5, 6.5, 4.5], atol=0.02)
    assert page.locator("[aria-live]").inner_text().endswith("from here 4.0")
    assert page.get_by_text("IoU at step 0: GIoU 0.00 (error 2.00)").is_visible()


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(losses=["giou", "siuo"]), "unknown loss 'siuo'; did you mean 'siou'"),
        (dict(pred=(1, 2, 3)), "pred must be four numbers"),
        (dict(rate=0), "rate must be above 0"),
        (dict(gradients="exakt"), "gradients must be one of 'exact', 'published', 'repaired'"),
    ],
)
def test_wrong_arguments_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        explore(**wrong)
