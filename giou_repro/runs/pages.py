"""The page of an executed notebook: one file that asks no other host for anything."""

import re
from pathlib import Path

import nbformat
from latex2mathml import converter
from nbconvert import HTMLExporter

TEMPLATE = """{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block html_head_css -%}<style>img { max-width: 100%; height: auto }</style>{%- endblock -%}
{%- block data_png scoped -%}
{%- set alt = (output | get_metadata('alt', 'image/png')) or cell.metadata.alt -%}
<div class="jp-RenderedImage jp-OutputArea-output" tabindex="0">
<img src="data:image/png;base64,{{ output.data['image/png'] }}" alt="{{ alt | escape_html }}"></div>
{%- endblock -%}
"""
MATH = re.compile(r"`[^`]*`|\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^$\n]+)\$", re.S)


def exported(notebook: Path, **options) -> str:
    """nbconvert's page of an executed notebook; `options` are HTMLExporter's.

    Its title is the notebook's first line, formulae are MathML, and a picture's text is the caption, or the heading,
    above it.
    """
    book = nbformat.read(notebook, as_version=4)
    caption = ""
    book.metadata.pop("widgets", None)  # for which nbconvert asks a host; a bar of progress shows as text
    for cell in book.cells:
        if cell.cell_type == "markdown":
            figure = re.search(r"\*\*Figure.*", cell.source)
            caption = re.sub(r"[#*$`\\]", "", figure[0] if figure else cell.source.strip().split("\n")[0]).strip()
            cell.source = MATH.sub(_mathml, cell.source)
            book.metadata.setdefault("title", caption)
        cell.metadata["alt"] = caption
    return HTMLExporter(**{"raw_template": TEMPLATE} | options).from_notebook_node(book)[0]


def _mathml(match):
    display = "block" if match["block"] else "inline"
    return converter.convert(match[display], display=display) if match["block"] or match["inline"] else match[0]
