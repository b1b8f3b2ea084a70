"""LOSSES, the table of losses that every experiment walks over: the functions of `losses`, and a user's own.

    @loss("mine", label="Mine")
    def mine(pred, target):
        return 1 - boxes.iou(pred, target) ** 2

and it is in LOSSES, hence in every notebook, figure and simulation. On a command line it is ``my_module:mine``.
Wherever a loss is named, a weighted sum such as ``5*l1 + 2*giou`` or a wrapped loss such as ``focaler(giou)`` is one
too: `LOSSES` makes it when it is asked for.
"""

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Hashable, Sequence

from giou_repro import losses
from giou_repro.contract import Loss, Sum, SumLoss, is_packaged
from giou_repro.spelling import listed, unknown
from giou_repro.wrappers import WRAPPERS

SPACES = ("boxes", "coordinates")


class _Losses(dict):
    def __missing__(self, name):
        try:
            return _composed(name)
        except (TypeError, ValueError) as error:
            raise KeyError(str(error)) from None


LOSSES: dict[str, Loss] = _Losses()


def loss(name: str, *, label=None, space="boxes", formula="", range="", paper="") -> Callable[[Callable], Callable]:
    """Register the decorated function in LOSSES under `name` and return it unchanged.

    `label` is what figures show, by default the name. `space` is "boxes" (the function is about overlap) or
    "coordinates". `formula`, `range` and `paper` are for the list of losses. Registering a name again replaces it, so
    that a notebook cell can be run twice; the names that come with the package are kept. Raises ValueError for a name
    of the package, a name that is not an identifier, or an unknown space.
    """
    if not isinstance(name, str):
        raise TypeError('write @loss("name") above the function, with a name')
    if not name.isidentifier():
        raise ValueError(f"a loss name must be an identifier such as 'my_loss', got {name!r}")
    if space not in SPACES:
        raise ValueError(f"loss {name!r}: space must be one of {SPACES}, got {space!r}")

    def register(function):
        if not callable(function) or not isinstance(function, Hashable):
            remedy = "a function, or an object with __call__ that can be hashed, such as a @dataclass(frozen=True)"
            raise TypeError(f"loss {name!r} must be {remedy}, got {type(function).__name__}")
        if name in LOSSES and is_packaged(LOSSES[name].function) and not is_packaged(function):
            raise ValueError(f"{name!r} is a loss of the package; give yours another name")
        shown = str(label or name)
        shown = f"loss {shown}" if shown.startswith("_") else shown  # legends leave out what begins with _
        LOSSES[name] = Loss(name, shown, function, space, formula, range, paper)
        return function

    return register


def select(losses: str | Sequence[str]) -> list[str]:
    """The names in LOSSES of `losses`: a list, or comma-separated text, of names, ``module:function`` pairs, weighted
    sums such as ``5*l1 + 2*giou``, and wrapped losses such as ``focaler(giou)``.

    A module is imported from the current folder or the Python path; a function in it without ``@loss`` is registered
    under its own name. Raises ValueError for a name that is not known, and names the closest one.
    """
    names = listed(losses) if isinstance(losses, str) else losses
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"losses must be a list of names or comma-separated text, got {losses!r}")
    if not names:
        raise ValueError(f"no loss given; the losses are {', '.join(LOSSES)}")
    names = [re.sub(r"[\w.]+:\w*", _import_loss, name.strip()) for name in names]
    return list(dict.fromkeys(name if name in LOSSES else _composed(name).name for name in names))


def label(name: str) -> str:
    """What figures and sentences call a loss: its label, or its name where no such loss is registered, as in a table
    made elsewhere."""
    try:
        return LOSSES[name].label
    except KeyError:
        return name


def _composed(text):
    """The Loss of a sum or a wrapped loss; ValueError for a name that is not known, and for anything else."""
    # a weight may stand beside its loss, as in 5l1
    tidy = re.sub(r"(?<![\w.])(\d+\.?\d*|\.\d+)\s*(?=[^\W\d])", r"\1*", text)
    try:
        terms = _terms_of(ast.parse(tidy, mode="eval").body)
    except SyntaxError:
        terms = ()
    if not terms:
        remedy = "a name, a sum such as 5*l1 + 2*giou, or a wrapped loss such as focaler(giou)"
        raise ValueError(f"unknown loss {text!r}: a loss is {remedy}")
    if len(terms) == 1 and terms[0][0] == 1:
        return terms[0][1]
    name, shown = (
        " + ".join((f"{weight:g}{gap}" if weight != 1 else "") + getattr(part, which) for weight, part in terms)
        for which, gap in (("name", ""), ("label", " "))
    )
    spaces = {part.space for _, part in terms}
    return SumLoss(name, shown, Sum(terms), spaces.pop() if len(spaces) == 1 else "both")


def _terms_of(node):
    """The (weight, Loss) pairs of an expression; none where it is no sum of losses."""
    match node:
        case ast.BinOp(left, ast.Add(), right):
            first, second = _terms_of(left), _terms_of(right)
            return (*first, *second) if first and second else ()
        case ast.BinOp(ast.Constant(int() | float() as weight), ast.Mult(), ast.Name() | ast.Call() as part):
            return tuple((weight * own, loss) for own, loss in _terms_of(part) if weight > 0)
        case ast.Name(name):
            if name not in LOSSES:
                raise ValueError(f"{unknown('loss', name, LOSSES)}; your own is my_module:my_function")
            return ((1, LOSSES[name]),)
        case ast.Call(ast.Name(wrapper), [inner], keywords) if wrapper in WRAPPERS and (of := _terms_of(inner)):
            return ((1, _wrapped(wrapper, of, keywords)),)
    return ()


def _wrapped(wrapper, of, keywords):
    (_, inner), *others = of
    if others or inner.space != "boxes":
        raise ValueError(f"{wrapper} takes a loss about overlap, not {' + '.join(part.name for _, part in of)}")
    try:
        options = {keyword.arg: ast.literal_eval(keyword.value) for keyword in keywords}
        function = WRAPPERS[wrapper](inner.function, **options)
    except TypeError as error:
        raise ValueError(f"{wrapper}({inner.name}): {error}") from None
    given = "".join(f", {keyword}={value!r}" for keyword, value in options.items())
    return Loss(f"{wrapper}({inner.name}{given})", f"{wrapper.capitalize()} {inner.label}{given}", function, "boxes")


def table(markdown: bool = False) -> str:
    """The registered losses with formula, range, space and paper, as text or as a Markdown table."""
    if markdown:
        cells = [(f"`{e.name}`", e.formula, e.range, e.space, e.paper) for e in LOSSES.values()]
        rows = ["| " + " | ".join(cell.replace("|", "\\|").replace("*", "\\*") for cell in row) + " |" for row in cells]
        return "\n".join(["| loss | formula | range | space | paper |", "|---|---|---|---|---|", *rows]) + "\n"
    return "".join(f"{e.name:<12}{e.space:<13}{e.range:<11}{e.formula}\n{'':<36}{e.paper}\n" for e in LOSSES.values())


def _import_loss(match):
    """Import the ``module:function`` that was found and return the name its loss has in LOSSES."""
    reference = match[0]
    module_name, _, attribute = reference.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name.split(".")[0] and error.name != module_name:
            raise
        where = "in the current folder or on the Python path"
        raise ValueError(f"loss {reference!r}: no module {module_name!r} {where}") from None
    function = getattr(module, attribute, None)
    for name, entry in LOSSES.items():
        if entry.function is function or (name == attribute and entry.function.__module__ == module_name):
            return name
    if not callable(function):
        raise ValueError(f"loss {reference!r}: module {module_name!r} has no function {attribute!r}")
    loss(attribute)(function)
    return attribute


def _described(function):
    """What the docstring of a loss says: the formula, its first paragraph, and ``label: …``, ``range: …`` and so on."""
    text = inspect.getdoc(function) or ""
    fields = dict(re.findall(r"^(label|range|space|paper): (.+(?:\n +.+)*)", text, re.MULTILINE))
    return {key: " ".join(value.split()) for key, value in (fields | {"formula": text.partition("\n\n")[0]}).items()}


for _name, _function in vars(losses).items():
    if inspect.isfunction(_function) and is_packaged(_function) and not _name.startswith("_"):
        loss(_name, **_described(_function))(_function)
