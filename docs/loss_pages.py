"""The page each_loss of the site: of each row of its table a section, with what the loss's docstring says, its formula
typeset, and a figure of its value and gradient that is drawn now."""

import re

from giou_repro.experiments import landscape, style
from giou_repro.registry import LOSSES

PAGE = "each_loss"
ROW = re.compile(r"^\| `(\w+)` \| (.+) \| (.+) \| (.+) \|$", re.M)
ATOM = r"(?:[A-Za-z]{2,})?\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)[²³]?|\|[^|]*\||(?!e-)[\w*]+"
FRACTION = re.compile(rf"({ATOM}) ?/ ?({ATOM})")
SIGNS = {
    "²": "^2",
    "³": "^3",
    "⁴": "^4",
    "½": r"\tfrac12 ",
    "ᵢ": "_i",
    "₁": "_1",
    "₂": "_2",
    "−": "-",
    "∖": r"\smallsetminus ",
    "·": r"\cdot ",
}
SIGNS |= {"Σ": r"\sum ", "*": "^*"}
CAPTION = (
    "*How to read the figures*: left, the loss as a unit square slides along x over the target, a unit square at 0; in "
    "the middle, as a square about the target's centre grows from a point to a side of 4. Right, the way in which the "
    "loss moves the centre of a square of side 0.5, the larger the gradient the darker, and a red cross where there is "
    "none; the target is green."
)


def expand(app, docname, source):
    """Sphinx's source-read: a section in place of each row of the table."""
    if docname == PAGE:
        rows = ROW.findall(source[0])
        names = [name for name, *_ in rows]
        tables = landscape.profiles(names, 300), landscape.field(names, 17)
        folder = app.srcdir / "notebooks"
        sections = [_section(folder, *row, *(table[table.loss == row[0]] for table in tables)) for row in rows]
        source[0] = source[0].partition("\n| ")[0] + f"\n{CAPTION}\n\n" + "\n".join(sections)


def _section(folder, name, adds, costs, when, profiles, field):
    entry = LOSSES[name]
    figure = _picture(entry, profiles, field)
    figure.savefig(folder / f"{name}.png", dpi=140)
    words = landscape.describe_field(field).removeprefix("**What we see.** ")
    paper = f" {entry.paper}." if entry.paper else ""
    alt = f"{entry.label}: its value as a box slides and as it grows, and its gradient field"
    formulae = "".join(f"$${latex(part)}$$\n\n" for part in entry.formula.split("; "))
    return (
        f'## {entry.label}\n\n{formulae}`LOSSES["{name}"]`, range {entry.range}.{paper}\n\n'
        f"**Adds.** {adds} **Costs.** {costs} **When.** {when}\n\n![{alt}](notebooks/{name}.png)\n\n{words}\n"
    )


@style.styled
def _picture(entry, profiles, field):
    figure, ((slide, scale, plane),) = style.panels(1, 3, 1.8, 1.7)
    for axis, scenario in ((slide, "slide"), (scale, "scale")):
        part = profiles[profiles.scenario == scenario]
        style.draw_loss(axis, entry.name, part.t, part.value, marker="")
        axis.set(xlabel=landscape.SCENARIOS[scenario][0], ylim=(0, None))
    slide.set_ylabel("loss")
    landscape.draw_field(plane, field)
    plane.set_title("")
    style.hide_scales(plane)
    return figure


def latex(formula: str) -> str:
    """A formula as docstrings have it, such as "1 − IoU + ρ²/c²", in LaTeX."""
    formula = FRACTION.sub(lambda match: rf"\frac{{{_inside(match[1])}}}{{{_inside(match[2])}}}", formula)
    formula = re.sub(r"(\d)e-(\d+)", r"\1 \\cdot 10^{-\2}", formula)
    words = r" ?(?<![\\A-Za-z])[A-Za-z']{2,}(?:[ ,:]+(?:a|[A-Za-z']{2,}))* ?"
    formula = re.sub(words, lambda match: rf"\text{{{match[0]}}}", formula)
    return "".join(SIGNS.get(sign, sign) for sign in formula)


def _inside(atom):
    """An atom of a fraction, its own fractions done, without the parentheses that the bar replaces."""
    bare = re.fullmatch(r"\(((?:[^()]|\([^()]*\))*)\)", atom)
    inner = bare[1] if bare else atom
    return FRACTION.sub(lambda match: rf"\frac{{{_inside(match[1])}}}{{{_inside(match[2])}}}", inner)
