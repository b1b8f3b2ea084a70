"""What is told about a data set, and the exit status of `data check`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from builders import HEIGHT, LAUGHS, SOUND, WIDTH, coco, entry, kinds, picture, voc, xml
from PIL import Image

from giou_repro.__main__ import main
from giou_repro.data import datasets
from giou_repro.data.defects import ACTIONS, Unreadable
from giou_repro.data.files import contents, digest
from giou_repro.training import loop


def test_the_command_lists_defects_and_its_exit_status_reports_them(tmp_path, capsys):
    sound = voc(tmp_path / "sound", {"a": xml(SOUND)})
    broken = voc(tmp_path / "broken", {"a": xml(SOUND, ("cell", 5, 5, 5, 9)), "b": LAUGHS}, train=["a", "absent"])
    assert main(["data", "check", str(sound)]) == 0
    assert "split all: no defects" in capsys.readouterr().out
    assert main(["data", "check", str(broken)]) == 1
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    table = [[word.strip() for word in line if word.strip()] for line in lines]
    assert ["a.jpg", "object 2 (cell)", "zero area", "dropped", "(5, 5, 5, 9)"] in table
    assert ["b.xml", "hostile XML", "image skipped", "(it declares a document type or an entity)"] in table
    assert ["absent.xml", "missing annotation", "image skipped", "('absent.xml' is not in Annotations, .)"] in table
    assert ["cell", "1", "1", "0", "0", "20.0"] in table
    for arguments in ([str(tmp_path / "nowhere")], [str(broken), "--split", "test"], ["voc2012"]):
        assert main(["data", "check", *arguments]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert "no data set at" in errors[0]
    assert "no split 'test'; it has all, train" in errors[1]
    assert "giou-repro data download voc2012" in errors[2]


def test_a_set_of_which_nothing_is_left_is_refused_with_the_reasons_and_still_reported(tmp_path, capsys):
    voc(tmp_path, {"a": LAUGHS, "b": ""})
    with pytest.raises(Unreadable, match="2 defects\n  1 hostile XML"):
        datasets.load(tmp_path, "all")
    assert main(["data", "check", str(tmp_path)]) == 1
    assert "nothing of it can be used" in capsys.readouterr().out


def defects_of(out):
    """The kinds in the tables that a check printed."""
    return [kind for kind in ACTIONS for line in out.splitlines() if f"  {kind}  " in line]


def test_the_exit_status_tells_converted_from_lost(tmp_path, capsys):
    grey = voc(tmp_path / "grey", {"a": xml(SOUND, SOUND)})
    picture(grey / "JPEGImages" / "a.jpg", "L")
    assert main(["data", "check", str(grey)]) == 3
    assert defects_of(capsys.readouterr().out) == ["duplicate", "not RGB"]
    (grey / "Annotations" / "b.xml").write_text(xml(SOUND))
    assert main(["data", "check", str(grey)]) == 1


@pytest.mark.parametrize(
    ("lists", "kind"),
    [
        (dict(train="abcd", val="ef"), []),
        (dict(train="ab", val="cdef"), []),
        (dict(train="a", val="cdef"), ["smaller than a test split"]),
        (dict(test="abcd", train="f"), ["smaller than a test split"]),
        (dict(train="abc", val="abc"), ["split in another"]),
        (dict(train="abc", trainval="abcd", val="d"), []),
        (dict(train="abc", testing="cde"), ["split in another"]),
        (dict(one="abc", two="def", three="abc"), ["split in another"]),
        (dict(full="abcdef", train="ab", val="c"), []),
        (dict(train_1="abc", val_1="d", train_2="abd", val_2="c"), []),
        (dict(train_1="abc", val_1="c", train_2="abd", val_2="e"), ["split in another"]),
        (dict(train_80="abc", val_20="c"), ["split in another"]),
        (dict(train="abcd", val=""), ["empty list"]),
        (dict(train="abcd", val=["", " "]), ["empty list"]),
        (dict(train="abcd", val="eef"), ["listed twice"]),
        (dict(train="abcde", val="gg"), ["listed twice", "no object"]),
    ],
)
def test_splits_are_compared_and_every_list_is_read(tmp_path, capsys, lists, kind):
    voc(tmp_path, {id: xml(SOUND) for id in "abcdef"} | {"g": xml()}, **lists)
    for shade, id in enumerate("abcdefg"):
        Image.new("RGB", (WIDTH, HEIGHT), (shade,) * 3).save(tmp_path / "JPEGImages" / f"{id}.jpg", "BMP")
    status = main(["data", "check", str(tmp_path)])
    assert defects_of(capsys.readouterr().out) == kind
    assert status == (0 if not kind else 1 if kind[-1] in ("empty list", "no object") else 3)


def test_training_is_told_what_its_splits_share(tmp_path):
    voc(tmp_path, {id: xml(SOUND) for id in "abcd"}, train="a", val="abcd")
    config = loop.configure(scale="smoke", dataset=str(tmp_path))
    assert kinds(loop.open_sets(config)[1].defects) == ["split in another", "smaller than a test split"]


def test_other_json_files_beside_are_no_splits_and_a_split_named_all_hides_no_other(tmp_path, capsys):
    for name in ("all", "train"):
        coco(tmp_path / f"{name}.json", [entry()])
    for name, text in {
        "info": '{"name": "cells"}',
        "settings": "[1]",
        "broken": "{",
        "lists": '{"images": []}',
    }.items():
        (tmp_path / f"{name}.json").write_text(text)
    assert datasets.splits(tmp_path) == ["all", "broken", "lists", "train"]
    assert main(["data", "check", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert defects_of(out) == ["malformed JSON"] * 2
    assert all(f"split {name}: " in out for name in ("all", "broken", "lists", "train"))


LABELS = '<annotations><image name="a.jpg"><box label="cell" xtl="1"/></image></annotations>'
FOREIGN = {
    "labels/train/a.txt": ("0 0.5 0.5 0.1 0.2\n1 0.25 0.5 1e-2 1\n", "YOLO text"),
    "json/a.json": ('{"version": "5.0", "shapes": [], "imagePath": "a.jpg"}', "labelme"),
    "a.json": ('{"imagePath": "a.jpg", "shapes": []}', "labelme"),
    "annotations.xml": (LABELS, "CVAT XML"),
    "task/annotations.xml": (LABELS, "CVAT XML"),
    "via.json": ('{"a.jpg12": {"regions": [{"shape_attributes": {}}]}}', "VGG Image Annotator"),
    "results.json": ('[{"image_id": 7, "category_id": 3, "bbox": [1, 1, 2, 2], "score": 0.5}]', "COCO results"),
    "label_2/a.txt": ("Car 0.00 0 -1.58 587.01 173.33 614.12 200.12 1.65 1.67 3.64 -0.65 1.71 46.70 -1.59\n", "KITTI"),
    "labels.csv": ("ImageID,XMin\na,0.1\n", "a table"),
    "xml/train/a.xml": (xml(SOUND), "Pascal VOC in another layout"),
    "train/json/a.json": ('{"images": [{"id": 1}], "annotations": [], "categories": []}', "COCO in another layout"),
}


@pytest.mark.parametrize(("name", "content"), FOREIGN.items(), ids=FOREIGN)
def test_an_unknown_format_is_named_with_what_to_do(tmp_path, capsys, name, content):
    text, known = content
    (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / name).write_text(text)
    picture(tmp_path / "images" / "a.jpg")
    for path in (tmp_path, tmp_path / name)[: 1 if "another layout" in known else 2]:
        assert main(["data", "check", str(path)]) in (1, 2)
        told = "".join(capsys.readouterr())
        assert f"{tmp_path / name} seems to be {known}" in told
        assert "which is not read: " in told


def test_no_loop_of_links_stops_a_check(tmp_path, capsys):
    """In every folder one that leads to itself and one that leads up; and in the place of an image and of its XML."""
    voc(tmp_path, {id: xml(SOUND) for id in "abc"}, train="abc")
    for name in ("JPEGImages/b.jpg", "Annotations/c.xml"):
        (tmp_path / name).unlink()
        (tmp_path / name).symlink_to(Path(name).name)
    for folder in (tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())):
        (folder / "loop").symlink_to("loop")
        (folder / "up").symlink_to("..")
    assert main(["data", "check", str(tmp_path)]) == 1
    assert defects_of(capsys.readouterr().out) == ["missing image", "malformed annotation"]
    assert [name for name, _ in contents(tmp_path)] == [
        *("Annotations/a.xml", "Annotations/b.xml", "ImageSets/Main/train.txt", "JPEGImages/a.jpg", "JPEGImages/c.jpg")
    ]


def linked(folder):
    """A COCO file, its image behind a link to a folder elsewhere and a link to a file there."""
    coco(folder / "elsewhere" / "a.json", [entry()]).unlink()
    (folder / "elsewhere" / "seven.jpg").rename(folder / "elsewhere" / "s.jpg")
    (folder / "elsewhere" / "seven.jpg").symlink_to("s.jpg")
    file = coco(folder / "set" / "annotations" / "instances_train.json", [entry()])
    (file.parent / "seven.jpg").unlink()
    (folder / "set" / "train").symlink_to(folder / "elsewhere")
    return folder / "set", folder / "elsewhere" / "s.jpg"


def beside(folder):
    """A COCO file alone is the data set, its images lie beside its folder."""
    set, image = linked(folder)
    return set / "annotations" / "instances_train.json", image


def downloaded(folder):
    voc(folder / "data" / "VOCdevkit" / "VOC2007", {"a": xml(SOUND)}, train="a")
    return "voc2007", folder / "data" / "VOCdevkit" / "VOC2007" / "JPEGImages" / "a.jpg"


@pytest.mark.parametrize("build", [linked, beside, downloaded])
def test_the_contents_of_a_data_set_are_those_of_every_file_that_is_opened(tmp_path, monkeypatch, build):
    monkeypatch.setattr(datasets, "project_folder", lambda: tmp_path)
    dataset, image = build(tmp_path)
    first = contents(dataset)
    assert len(first) == (3 if build is downloaded else 2)
    assert [name for name, _ in first] == sorted(name for name, _ in first)
    assert all(not name.startswith("/") for name, _ in first)
    os.utime(image, (0, 0))
    assert contents(dataset) == first
    content = bytearray(image.read_bytes())
    content[-20] ^= 1  # as large as before
    image.write_bytes(content)
    assert contents(dataset) != first
    assert contents("shapes") == contents(tmp_path / "nowhere") == []
    assert digest(tmp_path / "nowhere") == "nowhere: No such file or directory"


def test_a_locale_that_is_not_utf8_changes_nothing(tmp_path):
    """Names and classes beyond ASCII, in a Python that takes file names and output for ASCII."""
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "é").mkdir()
    file = coco(tmp_path / "json" / "b.json", [entry()], [dict(id=8, file_name="é/ü.jpg")], ((3, "naïve"),))
    picture(file.parent / "é" / "ü.jpg")
    voc(tmp_path / "xml", {"ü": xml(("ö", 1, 1, 5, 5)), "o": xml(("ö", 1, 1, 5, 5), ("é", 2, 2, 2, 5))}, train="üo")
    code = "import sys\nfrom giou_repro.__main__ import main\nfrom giou_repro.data import datasets, files\n"
    code += "for path in sys.argv[1:]:\n    status = main(['data', 'check', path])\n"
    code += "    print(status, ascii(files.contents(path)), datasets.load(path, 'all').checksum)\n"
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii:replace"}
    answer = subprocess.run(
        [sys.executable, "-c", code, str(file), str(tmp_path / "xml")],
        env=os.environ | ascii_only,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "missing image" not in answer
    for path, status in ((file, 3), (tmp_path / "xml", 1)):  # without a size, and with a box without a width
        expected = f"{status} {contents(path)!a} {datasets.load(path, 'all').checksum}"
        assert expected in answer.splitlines()


def test_every_kind_of_defect_is_explained():
    text = (Path(__file__).parents[1] / "data" / "README.md").read_text()
    assert [kind for kind, action in ACTIONS.items() if f"| {kind} | {action} |" not in text] == []


def test_help_needs_neither_torch_nor_pillow():
    code = "import sys, giou_repro\nfrom giou_repro.__main__ import main\ntry: main(['data', 'check', '--help'])\n"
    code += "except SystemExit: print({'torch', 'PIL', 'numpy'} & set(sys.modules))"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    ).stdout
    assert answer.splitlines()[-1] == "set()"
