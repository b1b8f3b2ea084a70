"""The site, built offline by `make site`: the pages beside this file, the README, docstrings, and the newest executed
copy of each notebook under results/."""

import os
import re
import sys
from pathlib import Path

import nbformat
from docutils import nodes
from latex2mathml import converter

from giou_repro import explore
from giou_repro.runs import pages, store

sys.path.insert(0, str(Path(__file__).parent))
import loss_pages

PROJECT = Path(__file__).parents[1]
NOTEBOOKS = Path(__file__).with_name("notebooks")  # made anew by each build, as is the folder of
MORE = {  # pages of the site that lie elsewhere in the repository
    "more/reproduced": "results/published/README.md",
    "more/list_of_losses": "LOSSES.md",
    "more/data": "data/README.md",
    "more/changes": "CHANGELOG.md",
    "more/contributing": "CONTRIBUTING.md",
}
RUN = re.compile(r"""(\]\(|href=\\")\.\./\.\./(?:published/)?(\w+)(?:/[\w-]+)?""")  # a link of the report to a run
LINK = re.compile(r"\]\((?!\w+:)([^()\s#]+)(#[^()\s]*)?\)")

project = "giou_repro"
html_title = "giou_repro"
extensions = ["myst_nb", "sphinx.ext.autodoc"]
myst_enable_extensions = ["dollarmath", "substitution"]
myst_substitutions = {"explorer": explore().frame}
myst_heading_anchors = 4
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # no script from another host
nb_code_prompt_show = "show the code"
nb_code_prompt_hide = "hide the code"
html_theme = "furo"
html_math_renderer = "mathml"  # browsers draw it without a script
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"
suppress_warnings = ["myst.header", "myst.xref_missing", "mystnb.unknown_mime_type"]


def copy_notebooks(app, config):
    """Copy the newest complete run of each notebook to docs/notebooks/, code folded, each figure with a text for those
    who do not see it."""
    complete = store.runs(PROJECT / "results", status="complete")
    newest = {run.record["notebook"]: run for run in complete if (run.folder / "notebook.ipynb").is_file()}
    NOTEBOOKS.mkdir(exist_ok=True)
    for source in sorted((PROJECT / "notebooks").glob("*.ipynb")):
        run = newest.get(source.stem)
        notebook = pages.read(run.folder / "notebook.ipynb" if run else source)
        notebook.cells = [c for c in notebook.cells if "injected-parameters" not in c.metadata.get("tags", [])]
        caption = source.stem
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.metadata["tags"] = ["hide-input"]
                cell.metadata["mystnb"] = {"image": {"alt": caption}}
            else:
                caption = pages.caption(cell.source)
        text = f"*Not executed yet: `giou-repro run {source.stem}`, then `make site`.*"
        if run:
            record = run.record
            where = f"{record['wall_seconds']:.0f} s on {record['hardware']['processor']}"
            text = f"*Executed at scale {run.parameters['scale']} in {where}, commit {record['commit'][:7]}.*"
        notebook.cells.insert(1, nbformat.v4.new_markdown_cell(text))
        (NOTEBOOKS / source.name).write_text(RUN.sub(r"\1\2.html", nbformat.writes(notebook)))


def copy_pages(app, config):
    """Copy the pages MORE into docs/more/."""
    for name, path in MORE.items():
        copy = PROJECT / "docs" / f"{name}.md"
        copy.parent.mkdir(exist_ok=True)
        copy.write_text((PROJECT / path).read_text())


def link_pages(app, docname, source):
    """Put README before the start page's contents, and let links between files of the repository lead to their pages
    on the site, those of published runs to what was reproduced, and others to a copy of the file."""
    path = PROJECT / ("README.md" if docname == "index" else MORE.get(docname, f"docs/{docname}.md"))
    text = path.read_text() + source[0] if docname == "index" else source[0]
    pages = {PROJECT / place: f"/{name}.md" for name, place in MORE.items()}

    def linked(match):
        target = (path.parent / match[1]).resolve()
        if target in pages:
            page = pages[target]
        elif target.is_dir():
            page = "/more/reproduced.md"
        elif target.is_file() and target.parts[len(PROJECT.parts)] in ("docs", "notebooks"):
            page = "/" + target.relative_to(PROJECT).as_posix().removeprefix("docs/")
        else:
            page = os.path.relpath(target, (PROJECT / "docs" / docname).parent)
        return f"]({page}{match[2] or ''})"

    source[0] = LINK.sub(linked, text)


def mathml(translator, node):
    display = "block" if isinstance(node, nodes.math_block) else "inline"
    translator.body.append(converter.convert(node.astext(), display=display))
    raise nodes.SkipNode


def verbatim(app, what, name, obj, options, lines):
    """Docstrings are plain text, with |A| and * in their formulae."""
    lines[:] = ["::", "", *("   " + line for line in lines), ""] if lines else []


def setup(app):
    app.connect("config-inited", copy_notebooks)
    app.connect("config-inited", copy_pages)
    app.connect("source-read", loss_pages.expand)
    app.connect("source-read", link_pages)
    app.connect("autodoc-process-docstring", verbatim)
    app.add_html_math_renderer("mathml", (mathml, None), (mathml, None))
