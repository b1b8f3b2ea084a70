"""The page of an executed notebook asks no other host for anything and says what its pictures show."""

import base64
import re

import nbformat
from bs4 import BeautifulSoup

from giou_repro.report import page
from giou_repro.runs import pages, store

DOT = base64.b64encode(b"not looked at").decode()
CELLS = [
    nbformat.v4.new_code_cell("0", metadata={"tags": ["install"]}),
    nbformat.v4.new_markdown_cell(
        "# A question?\n\nWith $w^* < \\frac{1}{2}$, and `$HOME and $PATH` as it is:\n\n$$a*b*c$$"
    ),
    nbformat.v4.new_markdown_cell("## Part\n\n**Figure 1.** How to read <it>."),
    nbformat.v4.new_code_cell("1", outputs=[nbformat.v4.new_output("display_data", {"image/png": DOT})]),
    nbformat.v4.new_code_cell(
        "2",
        outputs=[nbformat.v4.new_output("display_data", {"image/png": DOT}, metadata={"image/png": {"alt": "own"}})],
    ),
]
ELSEWHERE = re.compile(r"""(?:src|href)=["']?(?:https?:)?//|url\(["']?(?:https?:)?//|import\(?\s*["']https?:""")


def test_pages_stand_alone(tmp_path):
    path = tmp_path / "notebook.ipynb"
    printed = nbformat.v4.new_output("stream", text=f"results in {tmp_path}")
    widgets = {"application/vnd.jupyter.widget-state+json": {"version_major": 2, "version_minor": 0, "state": {}}}
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "a.pdf").touch()
    nbformat.write(
        nbformat.v4.new_notebook(
            cells=[*CELLS, nbformat.v4.new_code_cell("3", outputs=[printed])], metadata={"widgets": widgets}
        ),
        path,
    )
    assert str(tmp_path) not in pages.exported(path)
    for text, has_code in ((pages.exported(path), True), (page.exported(path), False)):
        soup = BeautifulSoup(text, "html.parser")
        assert (soup.title.text, soup.html["lang"]) == ("A question?", "en")
        assert [image["alt"] for image in soup.find_all("img")] == ["Figure 1. How to read <it>.", "own"]
        assert not ELSEWHERE.search(text) and "unpkg" not in text and "mathjax" not in text.lower()
        inline, block = soup.find_all("math")
        assert (inline["display"], block["display"]) == ("inline", "block") and "w*" in inline.text.replace(
            "\u2217", "*"
        )
        assert block.text.count("*") + block.text.count("\u2217") == 2
        contents, *files = soup.find_all("nav")
        (link,) = contents.find_all("a")
        assert (link.text, soup.find(id=link["href"].removeprefix("#")).text) == ("Part", "Part")
        assert [link["href"] for nav in files for link in nav.find_all("a")] == [
            "../../latest.html",
            "figures/a.pdf",
        ] * has_code
        contents.decompose()
        folded = [part.find("pre").text.strip() for part in soup.find_all("details")]
        assert folded == (["1", "2", "3"] if has_code else [])
        assert "$HOME and $PATH" in soup.text and "$$" not in soup.text


def test_formulae_of_the_notebooks_take_no_character_that_common_fonts_lack():
    for path in (store.project_folder() / "notebooks").glob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            text = BeautifulSoup(pages.MATH.sub(pages._mathml, cell.source), "html.parser").text
            assert cell.cell_type != "markdown" or "\u29f5" not in text, f"{path.name}: write \\smallsetminus"
