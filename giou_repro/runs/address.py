"""What makes a run what it is: notebook, parameters, data and the code that it imports. Equal addresses, equal runs."""

import ast
import contextlib
import functools
import hashlib
import importlib.machinery
import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from giou_repro.runs.files import project_folder

PACKAGE = Path(__file__).parents[1]
ANNOTATIONS = (".xml", ".json", ".txt", ".yaml", ".yml")  # files of a data set whose content counts
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")  # whose size counts


def address(notebook: str | Path, parameters: dict, inputs: Iterable[str] = ()) -> str:
    """What makes a run what it is, in 16 hexadecimal digits.

    It covers the notebook's name and cells (`notebook` is a path, or a name in the notebooks folder), the parameters
    (name → value, the declared defaults included; ``run_dir`` does not count), what of this package the notebook
    imports, directly or not, and of a user's loss named as ``my_module:mine`` likewise, and `inputs`, the addresses of
    runs whose results this one reads. Where the parameter ``dataset`` is a path, its last name and its files count.
    Versions of other packages are not covered.
    """
    counted = {name: value for name, value in parameters.items() if name != "run_dir"}
    files = _data_files(counted.get("dataset"))
    if files:
        counted["dataset"] = Path(counted["dataset"]).resolve().name
    cells = _cells(notebook)
    content = [notebook_name(notebook), cells, counted, _sources(cells, counted), sorted(inputs), files]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def notebook_name(notebook: str | Path) -> str:
    """The name of a notebook given by its path or by its name."""
    return Path(notebook).stem if Path(notebook).suffix == ".ipynb" else str(notebook)


def _cells(notebook):
    """Kind and text of each cell; none where there is no such notebook."""
    path = Path(notebook) if Path(notebook).suffix == ".ipynb" else project_folder() / "notebooks" / f"{notebook}.ipynb"
    if not path.is_file():
        return []
    return [[cell["cell_type"], "".join(cell["source"])] for cell in json.loads(path.read_text())["cells"]]


def _sources(cells, parameters):
    """Dotted name → text, of this package's modules and of the user's that the cells import or the parameters name,
    with the data files of this package that they name."""
    folders, texts = {}, {}
    waiting = sorted(set(re.findall(r'"(\w+(?:\.\w+)*):[A-Za-z_]\w*"', json.dumps(parameters, ensure_ascii=False))))
    importlib.invalidate_caches()
    for top in {module.partition(".")[0] for module in waiting}:
        if spec := importlib.machinery.PathFinder.find_spec(top, [os.getcwd(), *sys.path]):
            folders[top] = Path(next(iter(spec.submodule_search_locations or []), spec.origin)).parent
    for kind, text in cells:
        with contextlib.suppress(SyntaxError):  # such a cell imports nothing
            waiting += _imported(_without_magics(text), "") if kind == "code" else []
    while waiting:
        name = waiting.pop()
        path = _file(name, folders)
        if path and name not in texts:
            texts[name], parent = path.read_text(), name.rpartition(".")[0]
            waiting += [parent, *_imported(texts[name], name if path.stem == "__init__" else parent)]
            if path.is_relative_to(PACKAGE):
                data = [file for file in path.parent.glob("*.*") if file.suffix != ".py" and file.name in texts[name]]
                texts |= {f"{name}: {file.name}": file.read_text() for file in data}
    return texts


@functools.cache
def _without_magics(cell):
    from IPython.core.inputtransformer2 import TransformerManager  # takes half a second where no kernel has it

    return TransformerManager().transform_cell(cell)


@functools.cache
def _imported(text, package):
    """The dotted names that a source in `package` may import, in its functions too, modules or not.

    Of a source that forms the names of modules, as in f"giou_repro.detectors.{name}", all modules there.
    """
    names = []
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Import(aliases):
                names += [alias.name for alias in aliases]
            case ast.ImportFrom(module, aliases, level):
                source = importlib.util.resolve_name("." * level + (module or ""), package)
                names += [source, *(f"{source}.{alias.name}" for alias in aliases)]
            case ast.Constant(str(prefix)) if re.fullmatch(r"giou_repro\.[\w.]+\.", prefix):
                names += [prefix + path.stem for path in PACKAGE.parent.joinpath(*prefix.split(".")).glob("*.py")]
    return names


def _file(name, folders):
    """The file of a module of this package, or of the user's in one of the folders; None for any other."""
    top, _, rest = name.partition(".")
    places = [folder / name.replace(".", "/") for owner, folder in folders.items() if owner == top or _is_own(folder)]
    if top == PACKAGE.name:
        public = sys.modules[PACKAGE.name].MODULES  # for `from giou_repro import loss`
        places = [PACKAGE / public.get(rest, rest).replace(".", "/")]
    files = [file for place in places for file in (place / "__init__.py", place.with_name(f"{place.name}.py"))]
    return next((file for file in files if file.is_file()), None)


def _is_own(folder):
    """Whether a folder holds a user's own modules, not everything that is installed."""
    return folder.name not in ("site-packages", "dist-packages")


def _data_files(dataset):
    """What a data set consists of: name and content of its annotations and lists, name and size of its images.

    Empty where it is not a path. Run folders, hidden files and files of other kinds do not count.
    """
    root, files = Path(dataset or "/nowhere"), []
    for folder, folders, names in os.walk(root):
        runs = {name for name in folders if Path(folder, name, "run.json").exists()}
        folders[:] = sorted(name for name in folders if name[0] != "." and name not in runs)
        files += [Path(folder, name) for name in sorted(names) if name[0] != "."]
    entries = []
    for path in [root] if root.is_file() else files:
        kind = path.suffix.lower()
        if kind in ANNOTATIONS + IMAGES and path.is_file():
            state = path.stat()
            content = _sha256(path, state.st_size, state.st_mtime_ns) if kind in ANNOTATIONS else state.st_size
            entries.append([path.relative_to(root).as_posix(), content])
    return entries


@functools.cache
def _sha256(path, size, time):
    """Of the file's content, which is read again where size or time are others."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
