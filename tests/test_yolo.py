"""YOLO text: what is read, which defects it has, what is done about them. Images are 60x40 px."""

import pycocotools.mask
import pytest
from builders import HEIGHT, WIDTH, kinds, picture, yolo
from PIL import Image

from giou_repro.__main__ import main
from giou_repro.data import datasets, files
from giou_repro.data.defects import Unreadable
from giou_repro.training import loop

BOX = "0 0.5 0.5 0.5 0.5\n"  # (15, 10, 45, 30)


def test_boxes_polygons_and_oriented_boxes_in_one_file(tmp_path):
    """A box; a triangle, whose box is its extent; and an oriented box by its corners, half as large as its own box."""
    triangle, oriented = "1 0.1 0.1 0.5 0.1 0.5 0.6\n", "0 0.5 0.25 0.75 0.5 0.5 0.75 0.25 0.5\n"
    ds = datasets.load(yolo(tmp_path / "set", {"a": BOX + triangle + "\n" + oriented.replace("0 ", "1 ", 1)}), "train")
    image, target = ds[0]
    assert (ds.name, ds.classes, image.shape, ds.has_masks) == ("set", ("cell", "dog"), (3, HEIGHT, WIDTH), True)
    assert [str(one) for one in ds.defects] == ["a.jpg, line 1 (cell): missing mask: its box is the mask"]
    assert target["boxes"].tolist() == [[15, 10, 45, 30], [6, 4, 30, 24], [15, 10, 45, 30]]
    assert target["labels"].tolist() == [0, 1, 1]
    drawn = pycocotools.mask.frPyObjects([[6, 4, 30, 4, 30, 24]], HEIGHT, WIDTH)
    assert (target["masks"][1].numpy() == pycocotools.mask.decode(drawn)[..., 0]).all()
    assert target["masks"].sum((1, 2)).tolist() == pytest.approx([600, 240, 300], abs=20)


LINES = {
    "over by a hair": ("0 0.9 0.5 0.2002 0.5", ["partly outside"], [47.994, 10, 60, 30]),
    "over by rounding": ("0 0.9 0.5 0.2000005 0.5", [], [48, 10, 60, 30]),
    "an edge beyond": ("0 0 0.5 0.5 0.5", ["partly outside"], [0, 10, 15, 30]),
    "beside the image": ("0 1.5 0.5 0.2 0.2", ["wholly outside"], None),
    "pixels": ("0 30 20 30 20", ["not a share"], None),
    "a small one in the corner": ("0 0.01 0.01 0.02 0.02", [], [0, 0, 1.2, 0.8]),
    "no width": ("0 0.5 0.5 0 0.5", ["zero area"], None),
    "negative width": ("0 0.5 0.5 -0.5 0.5", ["inverted corners"], [15, 10, 45, 30]),
    "a class out of range": ("2 0.5 0.5 0.5 0.5", ["unknown class"], None),
    "half a class": ("0.5 0.5 0.5 0.5 0.5", ["unknown class"], None),
    "a class by name": ("cell 0.5 0.5 0.5 0.5", ["unknown class"], None),
    "a class as a float": ("0.0 0.5 0.5 0.5 0.5", [], [15, 10, 45, 30]),
    "a score at its end": ("0 0.5 0.5 0.5 0.5 0.9", ["malformed entry"], None),
    "three numbers": ("0 0.5 0.5 0.5", ["malformed entry"], None),
    "a class alone": ("0", ["malformed entry"], None),
    "an odd polygon": ("0 0.1 0.1 0.5 0.1 0.5 0.6 0.7", ["malformed entry"], None),
    "text": ("0 0.5 a 0.5 0.5", ["not a number"], None),
    "NaN": ("0 0.5 nan 0.5 0.5", ["not a number"], None),
    "twice": ("1 0.5 0.5 0.1 0.1", ["duplicate"], None),
}


@pytest.mark.parametrize(("line", "kind", "left"), LINES.values(), ids=LINES)
def test_a_broken_line_is_repaired_or_dropped_and_its_neighbour_stays(tmp_path, line, kind, left):
    ds = datasets.load(yolo(tmp_path, {"a": f"1 0.5 0.5 0.1 0.1\n{line}"}), "train")
    assert kinds(ds.defects) == kind
    boxes = [[27, 18, 33, 22], *([left] if left else [])]
    assert ds[0][1]["boxes"].tolist() == [pytest.approx(box, abs=1e-4) for box in boxes]


def test_a_polygon_that_leaves_the_image_is_cut_and_told(tmp_path):
    ds = datasets.load(yolo(tmp_path, {"a": "0 0.5 0.5 1.002 0.5 1.002 1.002 0.5 1.002"}), "train")
    assert kinds(ds.defects) == ["partly outside"]
    assert ds[0][1]["boxes"].tolist() == [[30, 20, 60, 40]]
    assert ds[0][1]["masks"].sum() == 600


def test_of_keypoints_the_box_is_taken(tmp_path):
    settings = "names: {0: cell}\nkpt_shape: [2, 3]\ntrain: images/train\n"
    ds = datasets.load(yolo(tmp_path, {"a": BOX[:-1] + " 0.1 0.1 2 0.2 0.2 0"}, settings), "train")
    assert (ds.defects, ds[0][1]["boxes"].tolist()) == ([], [[15, 10, 45, 30]])


@pytest.mark.parametrize(
    "settings",
    [
        *("train: images/train", "train: [images/train]", "path: .\ntrain: images", "train: ../images/train"),
        *("path: /content/gone\ntrain: images/train", "train: train.txt"),
    ],
)
def test_layouts_of_settings(tmp_path, settings):
    names = "names:\n  0: cell\n  4: dog\n"
    folder = yolo(tmp_path / "set", {"a": BOX, "b": "4 0.5 0.5 0.1 0.1", "c": ""}, names + settings)
    (folder / "train.txt").write_text("".join(f"./images/train/{id}.jpg\n" for id in "abc"))
    for path in (folder, folder / "data.yaml"):
        ds = datasets.load(path, "train")
        assert ds.defects == []
        assert [len(ds[index][1]["labels"]) for index in range(3)] == [1, 1, 0]
        assert ds[1][1]["labels"].tolist() == [1]
        names = {name for name, _ in files.contents(path)}
        assert {"data.yaml", "images/train/a.jpg", "labels/train/a.txt"} <= names
        assert ("train.txt" in names) == ("train.txt" in settings)


def test_texts_beside_their_images_and_a_split_that_is_not_there(tmp_path):
    folder = yolo(tmp_path, {"a": BOX}, "names: [cell]\ntrain: all\nval: nowhere\n")
    picture(folder / "all" / "b.c.png")
    (folder / "all" / "b.c.txt").write_text(BOX)
    assert datasets.splits(folder) == ["train", "val"]
    assert datasets.load(folder, "train").defects == []
    with pytest.raises(Unreadable, match=r"data\.yaml: missing folder \(.*nowhere\): not opened"):
        datasets.load(folder, "val")


def test_what_is_wrong_with_the_files_of_a_set(tmp_path):
    folder = yolo(tmp_path, {"a": BOX, "b": None, "c": "x" * (4 * 2**20 + 1)}, "names: [cell, cell]\ntrain: images\n")
    (folder / "labels" / "train" / "gone.txt").write_text(BOX)
    found = [(one.kind, one.file) for one in datasets.load(folder, "train").defects]
    expected = [("repeated class", "data.yaml"), ("malformed annotation", "c.txt")]
    assert found == [*expected, ("missing annotation", "b.jpg"), ("missing image", "gone.txt")]
    lines = [
        "images/train/a.jpg",
        "./images/train/a.jpg",
        "images\\train\\b.jpg",
        "/",
        "../d.jpg",
        "e" * 5000,
        "\0",
        "",
    ]
    (folder / "list.txt").write_text("\n".join(lines))
    (folder / "data.yaml").write_text("names: [cell]\ntrain: list.txt\n")
    found = [(one.kind, one.file[:5]) for one in datasets.load(folder, "train").defects]
    missing = [("missing image", name) for name in ("d.jpg", "eeeee", "\0")]
    assert found == [("listed twice", "a.jpg"), ("missing annotation", "b.jpg"), *missing]


@pytest.mark.parametrize("settings", ["names: [cell]\n", "train: images\n", "names: 3\ntrain: images", "a: [", "- 1"])
def test_settings_without_names_or_splits_are_refused(tmp_path, capsys, settings):
    folder = yolo(tmp_path, {"a": BOX}, settings)
    for path in (folder, folder / "data.yaml"):
        assert main(["data", "check", str(path)]) == 2
        assert "and no YOLO settings (data.yaml with names: and train:)" in capsys.readouterr().err


def test_names_that_grow_without_bound_are_not_written_out(tmp_path):
    doubled = "".join(f"x{n + 1}: &x{n + 1} [*x{n}, *x{n}]\n" for n in range(50))
    folder = yolo(tmp_path, {"a": BOX}, f"x0: &x0 [l]\n{doubled}names: [cell, *x50]\ntrain: images\n")
    assert datasets.load(folder, "train").classes == ("cell",)


def test_an_image_without_a_text_is_background_where_the_user_says_so(tmp_path, capsys):
    folder = yolo(tmp_path, {"a": BOX, "b": None})
    assert kinds(datasets.load(folder, "train").defects) == ["missing annotation"]
    ds = datasets.load(folder, "train", background=True)
    assert (ds.defects, [len(target["labels"]) for _, target in ds]) == ([], [1, 0])
    assert main(["data", "check", str(folder)]) == 1
    assert main(["data", "check", str(folder), "--background"]) == 0


def test_photographs_are_turned_as_exif_says_unless_it_is_ignored(tmp_path):
    """Their texts have no sizes that could say how the annotator saw them; YOLO's tools turn them."""
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn: 40x60
    picture(yolo(tmp_path, {"a": BOX}) / "images" / "train" / "a.jpg", exif=exif)
    for choice, kind, box in (
        (None, "turned by EXIF", [10, 15, 30, 45]),
        ("ignore", "EXIF not followed", [15, 10, 45, 30]),
    ):
        ds = datasets.load(tmp_path, "train", exif=choice)
        assert (kinds(ds.defects), ds[0][1]["boxes"].tolist()) == ([kind], [box])


def test_a_training_takes_its_splits_and_the_choices(tmp_path):
    folder = yolo(tmp_path, {"a": BOX, "b": None})
    config = dict(scale="smoke", dataset=str(folder), train_split="train[:50%]", val_split="train")
    train, val = loop.open_sets(loop.configure(**config, background=True, exif="ignore"))
    assert (len(train), len(val)) == (1, 2)
    with pytest.raises(ValueError, match="holds none of the 1 images"):
        loop.open_sets(loop.configure(**config))
