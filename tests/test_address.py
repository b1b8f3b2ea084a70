"""Addresses of runs: everything that can change a result counts, in any layout, and nothing else."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from giou_repro.checkout import project_folder
from giou_repro.data import datasets
from giou_repro.runs import address as addresses
from giou_repro.runs import store
from giou_repro.runs.address import address


def test_equal_runs_have_equal_addresses(tmp_path):
    one = address("n", dict(seed=0, size=2.5, run_dir=None))
    assert one == address("n", dict(size=2.5, seed=0, run_dir="/elsewhere"))
    others = [
        address("n", dict(seed=1, size=2.5)),
        address("m", dict(seed=0, size=2.5)),
        address("n", dict(seed=0, size=2.5), "0"),
    ]
    assert len({one, *others}) == 4
    assert len(one) == 16
    assert int(one, 16) >= 0


def _book(path, *cells):
    path.write_text(json.dumps(dict(cells=[dict(cell_type="code", source=source, outputs=[]) for source in cells])))
    return path


def test_the_notebooks_cells_are_part_of_the_address_and_its_outputs_are_not(tmp_path):
    path = _book(tmp_path / "n.ipynb", "a = 1", "b = 2")
    first = address(str(path), {})
    book = json.loads(path.read_text())
    book["cells"][0]["outputs"] = [dict(output_type="stream", text="1")]
    path.write_text(json.dumps(book))
    assert address(str(path), {}) == first
    assert address(str(_book(path, "a = 1", "b = 3")), {}) != first


def test_a_notebook_by_name_and_by_path_is_the_same():
    path = project_folder() / "notebooks" / "03_simulation.ipynb"
    assert address("03_simulation", dict(seed=1)) == address(path, dict(seed=1))
    assert address("03_simulation", dict(seed=1)) != address("no_such", dict(seed=1))


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package, whose sources addresses cover instead of the package's own."""
    copied = shutil.copytree(addresses.PACKAGE, tmp_path / "giou_repro", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(addresses, "PACKAGE", copied)
    return copied


NOTEBOOKS = [path.stem for path in sorted((project_folder() / "notebooks").glob("*.ipynb"))]


def _changed(package, file):
    """The notebooks whose address another line in a file of the package changes."""
    before = {name: address(name, {}) for name in NOTEBOOKS}
    (package / file).write_text((package / file).read_text() + "\n# another line")
    return {name for name in NOTEBOOKS if address(name, {}) != before[name]}


@pytest.mark.parametrize(
    ("file", "notebooks"),
    [
        ("boxes.py", set(NOTEBOOKS)),
        ("report/claims.py", {"07_report"}),
        ("report/claims.toml", {"07_report"}),
        ("simulation/compiled.py", set(NOTEBOOKS) - {"05_train_detector", "06_compare_losses"}),  # the explorer's steps
        ("detectors/yolov3.py", {"05_train_detector"}),
        ("runs/outputs.py", set(NOTEBOOKS)),
        ("runs/store.py", set()),
        ("runs/parameters.py", set()),
        ("__main__.py", set()),
    ],
)
def test_an_address_covers_the_code_that_the_notebook_imports_and_no_other(package, file, notebooks):
    changed = _changed(package, file)
    assert notebooks <= changed <= notebooks | {"04_one_box"}


def test_the_style_of_figures_counts_where_figures_are_drawn(package):
    style = next(package.rglob("*.mplstyle")).relative_to(package)
    assert {"01_metric", "02_loss_landscape", "03_simulation", "05_train_detector"} <= _changed(package, style)


def test_imports_in_functions_and_after_magics_count(package, tmp_path):
    path = _book(tmp_path / "n.ipynb", "%matplotlib inline\ndef f():\n    from giou_repro import polygons", "no Python")
    first = address(path, {})
    (package / "polygons.py").write_text("a = 2")
    assert address(path, {}) != first


@pytest.mark.parametrize(
    "parameters", [dict(loss="scratch:mine"), dict(losses=["iou", "scratch:mine"])], ids=["loss", "losses"]
)
def test_the_users_own_loss_is_part_of_the_address(user_module, parameters):
    user_module("scratch", "import helper\ndef mine(p, t): return 1")
    user_module("helper", "a = 1")
    user_module("unrelated", "a = 1")
    first = address("n", parameters)
    user_module("unrelated", "a = 2")
    assert address("n", parameters) == first
    user_module("helper", "a = 2")
    second = address("n", parameters)
    user_module("scratch", "import helper\ndef mine(p, t): return 2")
    assert len({first, second, address("n", parameters)}) == 3


def test_of_a_users_package_what_it_imports_counts(tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, text in (("__init__", ""), ("losses", "from . import helper"), ("helper", "a = 1"), ("other", "a = 1")):
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    first = address("n", dict(loss="mine.losses:one"))
    (folder / "other.py").write_text("a = 2")
    assert address("n", dict(loss="mine.losses:one")) == first
    (folder / "helper.py").write_text("a = 2")
    assert address("n", dict(loss="mine.losses:one")) != first


LAYOUTS = {
    "elsewhere on Python's path": ("from helper import GAMMA", "shared/helper.py"),
    "in a folder that the module adds to it": ("import sys; sys.path.insert(0, 'lib'); import helper", "lib/helper.py"),
    "above the module": ("import sys, os; sys.path.append(os.path.dirname(__file__)); import helper", "helper.py"),
    "in a package without __init__": ("from parts.inner import helper", "parts/inner/helper.py"),
    "relative or not": ("try:\n    from .helper import A\nexcept ImportError:\n    from helper import A", "helper.py"),
    "by name": ("import importlib; helper = importlib.import_module('helper')", "helper.py"),
    "by its file": ("exec(open('helper.py').read())", "helper.py"),
    "in a function": ("def mine(pred, target):\n    import helper", "helper.py"),
    "of a helper": ("import between", "helper.py"),
    "behind a link": ("import linked", "helper.py"),
    "in folders joined": ("import sys, os; sys.path.insert(0, os.path.join('a', 'b')); import helper", "a/b/helper.py"),
    "once more elsewhere": ("import sys; sys.path.insert(0, 'linked'); import linked", "linked/linked.py"),
    "as a script": ("import runpy; runpy.run_module('helper')", "helper.py"),
    "data": ("import json; GAMMA = json.load(open('gamma.json'))", "gamma.json"),
    "data in folders": ("from pathlib import Path; G = (Path('a') / 'b' / 'g.json').read_text()", "a/b/g.json"),
    "data by a part of its name": ("import json; A = 'a'; G = json.load(open(f'{A}/g.json'))", "a/g.json"),
    "data by a pattern": ("from pathlib import Path; G = [p.read_text() for p in Path('a').glob('*.txt')]", "a/g.txt"),
    "an entry of data": ("import json; G = json.load(open('gamma.json'))['w']", "gamma.json"),
    "a logarithm of data": ("import json, math; G = math.log(json.load(open('gamma.json')))", "gamma.json"),
    "data and a file made of it": ("import numpy as np; A = np.load('g.npy'); np.save('h.npy', A)", "g.npy"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_the_users_loss_imports_counts_in_any_layout(tmp_path, monkeypatch, layout):
    text, counted = LAYOUTS[layout]
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "shared")
    sources = {"my_loss.py": text, counted: "{}", "between.py": "import helper", "unrelated.py": ""}
    for name, content in sources.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(content)
    Path("linked.py").symlink_to("helper.py")
    first = address("n", dict(losses=["my_loss:mine"]))
    Path("unrelated.py").write_text("a = 2")
    assert address("n", dict(losses=["my_loss:mine"])) == first
    Path(counted).write_text("{'a': 2}")
    assert address("n", dict(losses=["my_loss:mine"])) != first


WRITTEN = [
    "open('log.json', 'a').write('1')",
    "open(\n    'log.json',\n    mode='xt',\n)",
    "LOG = 'log.json'\nwith open(LOG, 'a') as file:\n    file.write('1')",
    "from pathlib import Path\nLOG = Path(str('log.json'))\nLOG.write_text('1')",
    "class A:\n    log = 'log.json'\n    def write(self):\n        open(self.log, 'wb')",
    "table.to_json('log.json')",
    "import logging\nlogging.basicConfig(filename='log.json')",
]


@pytest.mark.parametrize("text", WRITTEN)
def test_a_file_that_the_loss_writes_does_not_count(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    Path("my_loss.py").write_text(text)
    first = address("n", dict(loss="my_loss:mine"))
    Path("log.json").write_text("1")
    assert address("n", dict(loss="my_loss:mine")) == first


def test_an_odd_source_of_the_users_ends_no_address_and_reads_nothing_around(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "around").mkdir()
    Path("my_loss.py").write_text("import helper\nA = ['/', '.', '..', '*.*', '*', '\\0', '[*.x', '/proc/self/mem']")
    Path("helper.py").write_text("+".join(["'a'"] * 3000))
    first = address("n", dict(loss="my_loss:mine"))
    (tmp_path / "around" / "a.txt").write_text("1")
    (tmp_path / "b.txt").write_text("1")
    assert address("n", dict(loss="my_loss:mine")) == first


def test_what_a_notebook_of_ones_own_imports_counts_without_a_loss_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("helper.py").write_text("a = 1")
    Path("script.py").write_text("b = 1")
    path = _book(tmp_path / "n.ipynb", "import helper\n%run script.py\nfiles = !ls")
    codes = [address(path, {})]
    for name in ("helper.py", "script.py"):
        Path(name).write_text("c = 2")
        codes.append(address(path, {}))
    assert len(set(codes)) == 3


PRINT = """
from giou_repro.runs.address import address
print(address("n.ipynb", dict(losses=["my_loss:mine"], dataset="bilder")))
"""


def test_an_address_is_the_same_in_a_locale_that_is_not_utf_8(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my_loss.py").write_text("# ℓ1\n", encoding="utf-8")
    Path("bilder").mkdir()
    Path("bilder", "ä.jpg").touch()
    _book(Path("n.ipynb"), "print('ℓ1')")
    here = address("n.ipynb", dict(losses=["my_loss:mine"], dataset="bilder"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG"))}
    environment |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    answer = subprocess.run([sys.executable, "-c", PRINT], env=environment, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == here


@pytest.fixture
def pictures(tmp_path):
    """A folder with two pictures, their annotations and their list."""
    for name, text in (
        ("a.jpg", "ab"),
        ("b.PNG", "abc"),
        ("a.xml", "<x>1</x>"),
        ("train.txt", "a"),
        ("notes.csv", "1"),
    ):
        path = tmp_path / "data" / "bccd" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return path.parent


def _address(folder):
    return address("n", dict(dataset=str(folder)))


def test_results_within_the_data_set_are_not_its_contents(pictures):
    results = pictures / "results" / "n"
    run = store.open_run("n", results, dict(dataset=str(pictures)), resume=True)
    run.save_figure("figure", Figure())
    (results.parent / "report.html").touch()
    run.close("complete")
    assert store.open_run("n", results, dict(dataset=str(pictures)), resume=True).complete


def test_a_data_set_is_known_by_its_contents_wherever_and_since_when_it_is_there(pictures, tmp_path, monkeypatch):
    first = _address(pictures)
    copied = shutil.copytree(pictures, tmp_path / "elsewhere" / "bccd", copy_function=shutil.copyfile)
    os.utime(copied / "a.jpg", (0, 0))
    assert _address(copied) == first
    monkeypatch.chdir(copied.parent)
    assert _address("bccd") == first
    (copied / "a.xml").write_text("<x>2</x>")
    assert _address(copied) != first
    assert _address(shutil.copytree(pictures, tmp_path / "renamed")) != first


@pytest.mark.parametrize(
    ("name", "text", "counts"),
    [
        ("a.jpg", "ba", True),
        ("b.PNG", "abcd", True),
        ("c.xml", "", True),
        ("notes.csv", "2", False),
        (".b.xml", "", False),
    ],
)
def test_what_of_a_data_set_counts(pictures, name, text, counts):
    first = _address(pictures)
    (pictures / name).write_text(text)
    assert (_address(pictures) != first) == counts


def test_of_a_data_set_what_links_lead_to_counts(tmp_path):
    for name in ("set", "store/images"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "store" / "images" / "a.jpg").write_text("ab")
    (tmp_path / "set" / "images").symlink_to(tmp_path / "store" / "images")
    (tmp_path / "set" / "loop").symlink_to(tmp_path / "set")
    first = _address(tmp_path / "set")
    (tmp_path / "store" / "images" / "a.jpg").write_text("ba")
    assert _address(tmp_path / "set") != first


@pytest.mark.parametrize("dataset", ["coco/annotations/train.json", "coco/annotations", "coco", "voc2007"])
def test_images_behind_an_unchanged_annotation_count(tmp_path, monkeypatch, dataset):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "project_folder", lambda: tmp_path)
    for name in ("coco/train2017/a.jpg", "coco/train2017/b.jpg", "data/VOCdevkit/VOC2007/JPEGImages/a.jpg"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("ab")
    Path("coco/annotations").mkdir()
    lists = '{"images": [{"id": 1, "file_name": "train2017/a.jpg"}], "annotations": [], "categories": []}'
    Path("coco/annotations/train.json").write_text(lists)
    Path("data/VOCdevkit/VOC2007/Annotations").mkdir()
    Path("data/VOCdevkit/VOC2007/Annotations/a.xml").touch()
    first = address("n", dict(dataset=dataset))
    Path("coco/train2017/b.jpg").write_text("ba")
    assert address("n", dict(dataset=dataset)) == first  # which is not listed
    for path in tmp_path.rglob("a.jpg"):
        path.write_text("ba")
    assert address("n", dict(dataset=dataset)) != first
