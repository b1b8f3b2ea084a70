"""What makes a run what it is: notebook, parameters, data and the code that it imports. Equal addresses, equal runs."""

import ast
import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import re
import sys
import sysconfig
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path

from giou_repro.checkout import project_folder

PACKAGE = Path(__file__).parents[1]
OUTPUTS = "giou_repro.runs.outputs"  # of this folder, what writes the tables and figures of every run
PAGES = "giou_repro.runs.pages"  # and of those that import it, their pages
STANDARD = Path(sysconfig.get_path("stdlib"))
DOTTED = re.compile(r"[^\W\d]\w*(?:\.\w+)*")
WRITES = re.compile(
    rb"\b(write|save|dump|log)\w*\(|['\"][bt]*[wax][bt+]*['\"]"
)  # in a line that makes the file which it names


def address(notebook: str | Path, parameters: dict, inputs: str = "", read: Callable | None = None) -> str:
    """What makes a run what it is, in 16 hexadecimal digits.

    It covers the notebook's name and cells (`notebook` is a path, or a name in the notebooks folder), the parameters
    (name → value, the declared defaults included; ``run_dir`` does not count), the data set and sources that `contents`
    covers, and `inputs`, which stands for the runs whose results this one reads. Of a path as ``dataset`` the last name
    counts. Who needs many addresses at once passes ``functools.cache(contents)`` as `read`.
    """
    counted = {name: value for name, value in parameters.items() if name != "run_dir"}
    modules = re.findall(rf"\b({DOTTED.pattern}):[^\W\d]", json.dumps(counted, ensure_ascii=False))
    dataset = counted.get("dataset")
    read = (read or contents)(str(notebook), tuple(sorted(set(modules))), dataset)
    if dataset and os.path.exists(dataset):
        counted["dataset"] = Path(dataset).resolve().name
    return _digest([notebook_name(notebook), counted, read, inputs])[:16]


def contents(notebook: str, modules: tuple[str, ...], dataset: str | None = None) -> str:
    """sha256 of what a run reads: the notebook's cells, the files of the data set, and every source that the cells and
    the user's `modules` import.

    Those are the sources of this package and the user's own, wherever Python finds them, imported in functions and by
    name too, with the scripts and data files that they name and do not write; what is installed counts only where
    `modules` names it. Of this package's ``runs``, which carries out and keeps what others compute, only OUTPUTS and
    PAGES.
    """
    cells = _cells(notebook)
    return _digest([cells, _sources(cells, modules), _data_files(dataset)])


def _digest(content):
    """sha256 of what JSON can say; the same under every locale, for names that are not UTF-8 in it too."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def notebook_name(notebook: str | Path) -> str:
    """The name of a notebook given by its path or by its name."""
    return Path(notebook).stem if Path(notebook).suffix == ".ipynb" else str(notebook)


def _cells(notebook):
    """Kind and text of each cell; none where there is no such notebook."""
    path = Path(notebook) if Path(notebook).suffix == ".ipynb" else project_folder() / "notebooks" / f"{notebook}.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"] if path.is_file() else []
    return [[cell["cell_type"], "".join(cell["source"])] for cell in cells]


def _sources(cells, modules):
    """Dotted name, or path as it is written → sha256, of each source that counts and each file that one names."""
    importlib.invalidate_caches()
    here, found, waiting = os.getcwd(), {}, [OUTPUTS, *modules]
    chosen, places = {name.partition(".")[0] for name in waiting}, [here, *filter(None, sys.path)]

    def read(key, content, package, folders):
        found[key] = hashlib.sha256(content).hexdigest()
        names, strings = _named(content, package)
        waiting.extend(names)
        paths = {os.path.join(folder, string): string for folder in folders for string in strings}
        if here in folders:  # a source of the user's may extend Python's path, and import by name
            places.extend(filter(os.path.isdir, paths))
            waiting.extend(filter(DOTTED.fullmatch, strings if re.search(b"import_module|__import__", content) else ()))
        for path, string in paths.items():
            if string not in found and os.path.isfile(path):
                script = string.endswith(".py")
                content = Path(path).read_bytes()
                read(string, content, "" if script else None, [os.path.dirname(path), here])

    for kind, text in cells:
        if kind == "code":
            read("", _without_magics(text).encode(), "", [here])
    while waiting:
        name = waiting.pop()
        aside = name.startswith(f"{PACKAGE.name}.runs") and name not in (OUTPUTS, PAGES)
        spec = None if not name or name in found or aside else _spec(name, places)
        top, _, _ = name.partition(".")
        if spec and spec.has_location and (top in chosen or not _is_installed(Path(spec.origin))):
            parent, folder = name.rpartition(".")[0], Path(spec.origin).parent
            waiting.append(parent)
            package = parent if spec.submodule_search_locations is None else name
            is_ours = top == PACKAGE.name
            places += [] if is_ours else [*map(str, folder.parents[:2]), str(folder.resolve())]
            read(name, spec.loader.get_data(spec.origin), package, [folder] if is_ours else [folder, here])
    return found


def _is_installed(origin):
    """Whether a source is Python's or an installed package's, by where it was found and by where links lead."""
    folders = {"site-packages", "dist-packages"}
    return all(path.is_relative_to(STANDARD) or folders & set(path.parts) for path in (origin, origin.resolve()))


def _spec(name, places):
    """How Python finds a module on `places` or elsewhere, without importing anything; None where it does not."""
    top, _, rest = name.partition(".")
    if top == PACKAGE.name:
        places, rest = (
            [str(PACKAGE.parent)],
            sys.modules[top].MODULES.get(rest, rest),
        )  # for `from giou_repro import loss`
    spec = PathFinder.find_spec(top, places)
    with contextlib.suppress(ImportError):  # such as the finder of an editable installation
        spec = spec or next(filter(None, (finder.find_spec(top, None) for finder in sys.meta_path)), None)
    for part in rest.split(".") if rest else ():
        spec = spec and PathFinder.find_spec(part, list(spec.submodule_search_locations or []))
    return spec


def _without_magics(cell):
    """A cell with a text for each line that is IPython's: "helper.py" for %run helper.py."""
    cell = re.sub(r"^(\s*)[%!]+\w*[ \t]*(.*)$", lambda line: line[1] + repr(line[2]), cell, flags=re.MULTILINE)
    return re.sub(r"^(\s*\w+\s*=\s*)[%!].*$", r"\1None", cell, flags=re.MULTILINE)


@functools.cache
def _named(content, package):
    """What a source in `package` may import, in its functions too, as dotted names, modules or not; and the texts in it
    that may name a file.

    Of a source that forms the names of modules, as in f"giou_repro.detectors.{name}", all modules there. A source that
    is not Python, as where `package` is None, names nothing.
    """
    names, strings, lines = [], [], content.split(b"\n")
    tree = ast.Module([], [])
    with contextlib.suppress(SyntaxError, ValueError):
        tree = ast.parse(content if package is not None else b"")
    for node in ast.walk(tree):
        match node:
            case ast.Import(aliases):
                names += [alias.name for alias in aliases]
            case ast.ImportFrom(module, aliases, level):
                with contextlib.suppress(ImportError):  # relative, in a script: not what runs
                    source = importlib.util.resolve_name("." * level + (module or ""), package)
                    names += [source, *(f"{source}.{alias.name}" for alias in aliases)]
            case ast.Constant(str(prefix)) if re.fullmatch(r"giou_repro\.[\w.]+\.", prefix):
                names += [prefix + path.stem for path in PACKAGE.parent.joinpath(*prefix.split(".")).glob("*.py")]
            case ast.Constant(str(text)) if not any(map(WRITES.search, lines[node.lineno - 1 : node.end_lineno])):
                strings.append(text)
    return names, strings


def _data_files(dataset):
    """Name and sha256 of each file that a run on a data set in files opens."""
    if not dataset or dataset == "shapes":
        return []
    from giou_repro.data import files  # in the function, because it brings torch

    return files.contents(dataset)
