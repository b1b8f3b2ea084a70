"""The parameters of a notebook: what its cell tagged "parameters" declares, and whether values are right.

The command line checks before a kernel starts, each notebook its own globals in its set-up cell, with the same words.
"""

import ast
import io
import json
import re
import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError

from giou_repro.checkout import NOTEBOOKS
from giou_repro.spelling import unknown

Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what every random generator takes
PositiveFloat = Annotated[FiniteFloat, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
ImageSize = Annotated[int, Field(ge=64, multiple_of=32)]  # pixels; 32 is the coarsest stride of the backbones
TYPES = {"bool": bool, "int": int, "float": FiniteFloat, "str": str, "Seed": Seed, "Share": Share}
TYPES |= dict(ImageSize=ImageSize, PositiveFloat=PositiveFloat, NonNegativeInt=NonNegativeInt, PositiveInt=PositiveInt)


class ParameterError(ValueError):
    """A parameter that the notebook does not have, that has the wrong type, or whose declaration cannot be read."""


@dataclass(frozen=True)
class Parameter:
    """One line of a notebook's parameters cell, as ``n_points = None  # type: AtLeast[2] anchor points``."""

    name: str
    type: Any
    default: Any
    help: str
    adapter: TypeAdapter


def find_notebook(name):
    """The path of a notebook given as a path, or by its name in the notebooks folder; else FileNotFoundError."""
    for path in (Path(name), NOTEBOOKS / f"{name}.ipynb"):
        if path.suffix == ".ipynb" and path.is_file():
            return path.resolve()
    raise FileNotFoundError(unknown("notebook", name, sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))))


def declared(notebook):
    """The parameters of the notebook at a path: name → Parameter. Nothing in it is evaluated.

    Each is a line ``name = value  # type: TYPE what it is`` or ``name: TYPE = value  # what it is``. Raises
    ParameterError, naming notebook and parameter, for a value that is no literal or a type that is none of TYPES, None,
    list[…], Literal[…], AtLeast[…] or a union of them.
    """
    cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
    source = next(("".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", [])), "")
    try:
        statements = [node for node in ast.parse(source).body if isinstance(node, ast.Assign | ast.AnnAssign)]
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except SyntaxError as error:
        raise ParameterError(f"{notebook}: its parameters cell is not Python ({error})") from None
    comments = {token.start[0]: token.string[1:].strip() for token in tokens if token.type == tokenize.COMMENT}
    parameters = [_parameter(notebook, node, comments.get(node.end_lineno, "")) for node in statements]
    return {parameter.name: parameter for parameter in parameters}


def _parameter(notebook, statement, comment):
    written, text = re.fullmatch(r"(?:type:\s*((?:\[[^]]*\]|\S)+))?\s*(.*)", comment).groups()
    if annotated := isinstance(statement, ast.AnnAssign):
        written = ast.unparse(statement.annotation)
    name = ast.unparse(statement.target if annotated else statement.targets[0])
    try:
        default = ast.literal_eval(statement.value)
        kind = _type(ast.parse(written, mode="eval").body) if written else type(default)
        kind = kind | None if default is None else kind
    except (ValueError, SyntaxError, TypeError):
        line = f"{ast.unparse(statement)}  # {comment}"
        remedy = f"write a literal, and one of {', '.join(TYPES)}, list[…], Literal[…], AtLeast[1] after # type:"
        raise ParameterError(f"{notebook}: parameter {name!r} cannot be read from {line!r}; {remedy}") from None
    return Parameter(name, kind, default, text, TypeAdapter(kind))


def _type(node):
    """The type that an expression of a comment names; ValueError where it names none."""
    match node:
        case ast.Name(name) if name in TYPES:
            return TYPES[name]
        case ast.Constant(None):
            return type(None)
        case ast.BinOp(left, ast.BitOr(), right):
            return _type(left) | _type(right)
        case ast.Subscript(ast.Name("list"), entry):
            return Annotated[list[_type(entry)], Field(min_length=1)]
        case ast.Subscript(ast.Name("Literal"), choices):
            return Literal[ast.literal_eval(choices)]
        case ast.Subscript(ast.Name("AtLeast"), ast.Constant(int(least))):
            return Annotated[int, Field(ge=least)]
    raise ValueError(ast.unparse(node))


def check(declared, given):
    """Return `given` (name → value) where each is declared and of its type, and losses exist; else raise
    ParameterError.

    A whole number given for a float becomes one, so that equal runs have equal parameters.
    """
    checked = {}
    for name, value in given.items():
        if name not in declared:
            raise ParameterError(unknown("parameter", name, declared))
        if name == "run_dir":
            raise ParameterError("run_dir is made by the runner; --results FOLDER says where")
        try:
            checked[name] = declared[name].adapter.validate_python(value, strict=True)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].lower()
            hint = "; None is written null" if value == "None" else ""
            help = f"({declared[name].help}{hint})"
            raise ParameterError(f"parameter {name!r} is {value!r}, but {reason} {help}") from None
        if name in ("loss", "losses") and value is not None:
            _check_losses(value)
    return checked


def check_notebook(name, values):
    """Check the parameters among a notebook's `values`, its globals; called by the notebook `name` itself.

    What it declares is read from its file in the notebooks folder or the current one; without either nothing can be
    checked. Raises ParameterError.
    """
    paths = [folder / f"{name}.ipynb" for folder in (NOTEBOOKS, Path())]
    known = next((declared(path) for path in paths if path.is_file()), {})
    check(known, {name: values[name] for name in known if name in values and name != "run_dir"})


def _check_losses(names):
    """Import what the notebook will import, so that a loss that is not there is refused before a kernel starts."""
    from giou_repro.registry import select  # in the function, because it brings torch

    try:
        selected = select(names)
    except ValueError as error:
        raise ParameterError(str(error)) from None
    if isinstance(names, list) and len(selected) < len(names):
        raise ParameterError(f"losses names one loss twice: {', '.join(names)}")


def resolved(declared, given):
    """The parameters (name → value) that a notebook starts with: the caller's, and the defaults of the others."""
    return {parameter.name: parameter.default for parameter in declared.values()} | given
