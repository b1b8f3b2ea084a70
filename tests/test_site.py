"""The site as `make site` builds it, of what is committed and of the runs that are there."""

import re
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path
from urllib.parse import unquote

import pytest
from bs4 import BeautifulSoup

from giou_repro import LOSSES

PROJECT = Path(__file__).parents[1]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", PROJECT / "docs", folder / "site"]
    build = subprocess.run([*command, "--doctree-dir", folder / "doctrees"], capture_output=True, text=True)
    assert build.returncode == 0, build.stderr
    return folder / "site"


def test_every_notebook_and_page_is_on_the_site(site):
    pages = {path.relative_to(site).with_suffix("").as_posix() for path in site.rglob("*.html")}
    sources = {f"notebooks/{path.stem}" for path in (PROJECT / "notebooks").glob("*.ipynb")}
    assert sources | {path.stem for path in (PROJECT / "docs").glob("*.md")} <= pages
    assert sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) < 30e6


def test_links_lead_somewhere(site):
    texts = {path: path.read_text() for path in site.rglob("*.html")}
    for path, text in texts.items():
        article = text.partition("<article")[2].partition("</article>")[0]
        for address in re.findall(r'<a [^>]*href="([^"]+)"', article):
            place, _, anchor = unquote(address).partition("#")
            target = (path.parent / place).resolve() if place else path
            if "://" not in address:
                assert target.is_file(), (path.name, address)
                assert not anchor or f'id="{anchor}"' in texts[target], (path.name, address)


def letters(text):
    return re.findall(r"[^\W_]", unicodedata.normalize("NFKD", text))


def test_every_loss_has_its_formula_and_its_figure(site):
    soup = BeautifulSoup((site / "each_loss.html").read_text(), "html.parser")
    sections = soup.select("section section")
    assert [part.h2.contents[0] for part in sections] == [loss.label for loss in LOSSES.values()]
    for part, loss in zip(sections, LOSSES.values(), strict=True):
        typeset = "".join(formula.text for formula in part.find_all("math"))
        assert letters(typeset) == letters(loss.formula.replace("e-", "10").replace("Σ", "")) and "\\" not in typeset
        assert (site / part.img["src"]).is_file() and "Costs." in part.text


@pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome")
@pytest.mark.parametrize("width, scheme", [(1280, "light"), (390, "dark")])
def test_pages_in_a_browser(site, width, scheme):
    """No message of an error, no request to another host, no sideways scroll, a text for every picture."""
    from playwright.sync_api import sync_playwright

    problems = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: problems.append(request.url) if request.url.startswith("http") else None)
        for path in sorted(site.rglob("*.html")):
            page.goto(path.as_uri())
            wide = page.evaluate("document.documentElement.scrollWidth") > width
            silent = page.evaluate("[...document.images].filter(image => !image.alt).length")
            problems += [f"{path.name}: {what}" for what, bad in (("too wide", wide), ("no alt text", silent)) if bad]
        browser.close()
    assert problems == []
