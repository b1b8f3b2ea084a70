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
from glob import iglob
from importlib.machinery import PathFinder
from pathlib import Path

from giou_repro.checkout import NOTEBOOKS

PACKAGE = Path(__file__).parents[1]
OUTPUTS = "giou_repro.runs.outputs"  # of this folder, what writes the tables and figures of every run
PAGES = "giou_repro.runs.pages"  # and of those that import it, their pages
STANDARD = Path(sysconfig.get_path("stdlib"))
PATTERN = re.compile(r"\*\.\w+$")
DOTTED = re.compile(r"[^\W\d]\w*(?:\.\w+)*")
BY_NAME = re.compile(rb"import_module|__import__|run_module")
WRITER = re.compile(r"(im)?write\w+|save\w*|dump\w*|to_(csv|json|pickle|parquet|excel)|touch|basicConfig|\w*Handler")
OPENER, MODE = re.compile(r"\w*(open|File|memmap)"), re.compile(r"[bt]*[wax][bt+]*")  # which makes the file
PATHS = {"Path", "PurePath", "join", "joinpath", "str", "fspath", "with_name", "with_suffix"}  # which name one


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
    path = Path(notebook) if Path(notebook).suffix == ".ipynb" else NOTEBOOKS / f"{notebook}.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"] if path.is_file() else []
    return [[cell["cell_type"], "".join(cell["source"])] for cell in cells]


def _sources(cells, modules):
    """Dotted name, or path as it is written → sha256, of each source that counts and each file that one names."""
    importlib.invalidate_caches()
    here, found, waiting, opened, added = os.getcwd(), {}, [OUTPUTS, *modules], set(), []
    chosen, places = {name.partition(".")[0] for name in waiting}, [here, *filter(None, sys.path)]

    def read(key, content, package, folders):
        while key and key in found:  # of two files of one name nobody knows which is read
            key += "'"
        found[key] = hashlib.sha256(content).hexdigest()
        names, strings = _named(content, package)
        waiting.extend(names)
        paths = _existing(strings, folders)
        if here in folders:  # a source of the user's may extend Python's path, and import by name
            added.extend(filter(os.path.isdir, paths))
            waiting.extend(filter(DOTTED.fullmatch, strings if BY_NAME.search(content) else ()))
        for path, written in paths.items():
            if path not in opened and os.path.isfile(path):
                opened.add(path)
                package = "" if path.endswith(".py") else None
                read(written, _bytes(path), package, [os.path.dirname(path), here])

    for kind, text in cells:
        if kind == "code":
            read("", _without_magics(text).encode(), "", [here])
    while waiting:
        name = waiting.pop()
        aside = name.startswith(f"{PACKAGE.name}.runs") and name not in (OUTPUTS, PAGES)
        wanted = name and name not in found and not aside
        specs = [_spec(name, folders) for folders in (places, *([folder] for folder in added))] if wanted else []
        top, parent = name.partition(".")[0], name.rpartition(".")[0]
        for spec in {spec.origin: spec for spec in specs if spec and spec.has_location}.values():
            if top in chosen or not _is_installed(Path(spec.origin)):
                folder, is_ours = Path(spec.origin).parent, top == PACKAGE.name
                waiting.append(parent)
                package = parent if spec.submodule_search_locations is None else name
                places += [] if is_ours else [*map(str, folder.parents[:2]), str(folder.resolve())]
                read(name, spec.loader.get_data(spec.origin), package, [folder] if is_ours else [folder, here])
    return found


def _bytes(path):
    try:
        return Path(path).read_bytes()
    except OSError as error:
        return repr(error.strerror).encode()


def _existing(strings, folders):
    """Path → as it is written, of the files and folders in `folders` that texts name, alone or joined."""
    strings, found = {string.lstrip("/") for string in strings} | set(strings), {}
    for base in dict.fromkeys(folders):
        level = [base]
        for _ in range(3):
            joined = (os.path.join(folder, string) for folder in level for string in sorted(strings))
            paths = [path for path in joined for path in (sorted(iglob(path)) if PATTERN.search(path) else [path])]
            new = {os.path.normpath(path) for path in paths if os.path.exists(path)} - found.keys() - {base, os.sep}
            found |= {path: path if path in strings else os.path.relpath(path, base) for path in sorted(new)}
            level = sorted(filter(os.path.isdir, new))
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
    names, strings, written, assigned = [], [], set(), []
    tree = ast.Module([], [])
    with contextlib.suppress(SyntaxError, ValueError, RecursionError):
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
            case ast.Constant(str(text)):
                strings.append(text)
            case ast.Call() if _makes_file(node):
                written.update(*map(_path_parts, [*node.args, *node.keywords, node.func]))
            case ast.Assign([ast.Name(name) | ast.Attribute(attr=name)], value):
                assigned.append((name, value))
    written.update(*(_path_parts(value) for name, value in assigned if name in written))
    return names, [text for text in strings if text not in written]


def _called(node):
    """The last name of what a call calls."""
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def _makes_file(call):
    """Whether a call seems to write the file that it names."""
    values = [*call.args[isinstance(call.func, ast.Name) :], *(keyword.value for keyword in call.keywords)]
    modes = [value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str)]
    name = _called(call)
    return bool(WRITER.fullmatch(name) or (OPENER.fullmatch(name) and any(map(MODE.fullmatch, modes))))


def _path_parts(node):
    """The texts in an expression that names a file, and the names of its variables."""
    match node:
        case ast.Constant(str(text)):
            return {text}
        case ast.Name(name):
            return {name}
        case ast.Attribute(value, name):
            return {name} | _path_parts(value)
        case ast.Call() if _called(node) not in PATHS:
            return set()
    return set().union(*map(_path_parts, ast.iter_child_nodes(node)))


def _data_files(dataset):
    """Name and sha256 of each file that a run on a data set in files opens."""
    if not dataset or dataset == "shapes":
        return []
    from giou_repro.data import files  # in the function, because it brings torch

    return files.contents(dataset)
