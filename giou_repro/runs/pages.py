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
{%- block html_head_css -%}<style>
img { max-width: 100%; height: auto; background: #fff }
summary { cursor: pointer; color: gray; font-size: small }
nav { padding: 0 var(--jp-notebook-padding); font-family: var(--jp-content-font-family) }
nav, nav a { color: var(--jp-content-font-color1) } nav a { text-decoration: underline }
@media (prefers-color-scheme: dark) { :root {
  --jp-layout-color0: #16181c; --jp-layout-color1: #16181c; --jp-layout-color2: #24272d;
  --jp-content-font-color0: #ddd; --jp-content-font-color1: #ddd; --jp-ui-font-color0: #ddd; --jp-ui-font-color1: #ddd;
  --jp-cell-editor-background: #1d2026; --jp-cell-editor-border-color: #333; --jp-border-color2: #444;
  --jp-rendermime-table-row-background: #1d2026; --jp-rendermime-table-row-hover-background: #2a2e36;
  --jp-content-link-color: #7ab8ff; --jp-mirror-editor-variable-color: #ddd } }
</style>{%- endblock -%}
{%- block input -%}<details><summary>code</summary>{{ super() }}</details>{%- endblock -%}
{%- block data_png scoped -%}
{%- set alt = (output | get_metadata('alt', 'image/png')) or cell.metadata.alt -%}
<div class="jp-RenderedImage jp-OutputArea-output" tabindex="0">
<img src="data:image/png;base64,{{ output.data['image/png'] }}" alt="{{ alt | escape_html }}"></div>
{%- endblock -%}
{%- block body_footer -%}<nav aria-label="files"><p><a href="../../latest.html">The newest run of every notebook</a></p>
<p>Figures as PDF:{% for name in resources.pdfs %} <a href="figures/{{ name }}.pdf">{{ name }}</a>{% endfor %}</p></nav>
{{ super() }}{%- endblock -%}
"""
MATH = re.compile(r"`[^`]*`|\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^$\n]+)\$", re.S)


def exported(notebook: Path, **options) -> str:
    """nbconvert's page of an executed notebook; `options` are HTMLExporter's.

    Its title is the notebook's first line, the parts are listed below it, formulae are MathML, and a picture's text is
    the caption, or the heading, above it.
    """
    book, text = read(notebook), ""
    book.metadata.pop("widgets", None)  # for which nbconvert asks a host; a bar of progress shows as text
    for cell in book.cells:
        if cell.cell_type == "markdown":
            text = caption(cell.source)
            cell.source = MATH.sub(_mathml, cell.source)
            book.metadata.setdefault("title", text)
        cell.metadata["alt"] = text
    exporter = HTMLExporter(**{"raw_template": TEMPLATE, "exclude_anchor_links": True} | options)
    pdfs = sorted(path.stem for path in notebook.parent.glob("figures/*.pdf"))
    return _with_contents(exporter.from_notebook_node(book, {"pdfs": pdfs})[0])


def read(notebook: Path):
    """An executed notebook for readers: without its install cell, and paths begin at the results folder, not at the
    machine's root."""
    text = notebook.read_text(encoding="utf-8").replace(f"{notebook.absolute().parents[2]}/", "")
    book = nbformat.reads(text, as_version=4)
    book.cells = [cell for cell in book.cells if "install" not in cell.metadata.get("tags", ())]
    return book


def caption(markdown: str) -> str:
    """The caption of a figure in a cell's text, or else its first line, without markup."""
    figure = re.search(r"\*\*Figure.*", markdown)
    return re.sub(r"[#*$`\\]", "", figure[0] if figure else markdown.strip().split("\n")[0]).strip()


def _with_contents(page):
    """The page with a list of links to its parts below its title."""
    parts = []

    def named(heading):
        parts.append(f'<li><a href="#part-{len(parts) + 1}">{re.sub("<[^>]*>", "", heading[1])}</a></li>')
        return f'<h2 id="part-{len(parts)}">{heading[1]}</h2>'

    page = re.sub("<h2>(.*?)</h2>", named, page)
    contents = f"<details><summary>Contents</summary><ol>{''.join(parts)}</ol></details>"
    return page.replace("</h1>", f'</h1><nav aria-label="contents">{contents}</nav>', 1)


def _mathml(match):
    display = "block" if match["block"] else "inline"
    return converter.convert(match[display], display=display) if match["block"] or match["inline"] else match[0]
