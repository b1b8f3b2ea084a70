"""The site, built offline by `make site`: the pages beside this file, the README, docstrings, and the newest executed
copy of each notebook under results/."""

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
NOTEBOOKS = Path(__file__).with_name("notebooks")  # made anew by each build

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
    newest = {run.record["notebook"]: run for run in store.runs(PROJECT / "results", status="complete")}
    NOTEBOOKS.mkdir(exist_ok=True)
    for source in sorted((PROJECT / "notebooks").glob("*.ipynb")):
        run = newest.get(source.stem)
        notebook = nbformat.read(run.folder / "notebook.ipynb" if run else source, as_version=4)
        left_out = {"install", "injected-parameters"}
        notebook.cells = [c for c in notebook.cells if not left_out & set(c.metadata.get("tags", []))]
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
        nbformat.write(notebook, NOTEBOOKS / source.name)


def mathml(translator, node):
    display = "block" if isinstance(node, nodes.math_block) else "inline"
    translator.body.append(converter.convert(node.astext(), display=display))
    raise nodes.SkipNode


def verbatim(app, what, name, obj, options, lines):
    """Docstrings are plain text, with |A| and * in their formulae."""
    lines[:] = ["::", "", *("   " + line for line in lines), ""] if lines else []


def setup(app):
    app.connect("config-inited", copy_notebooks)
    app.connect("source-read", loss_pages.expand)
    app.connect("autodoc-process-docstring", verbatim)
    app.add_html_math_renderer("mathml", (mathml, None), (mathml, None))
