"""Data sets: what is read, which defects it has, what is done about them, and that no defect ends the reading."""

import io
import json
import os
import struct
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
import torch
from PIL import Image
from torchvision.ops import masks_to_boxes

from giou_repro.__main__ import main
from giou_repro.data import datasets, generated
from giou_repro.data.defects import ACTIONS
from giou_repro.data.pictures import decode, header

REAL = Path(__file__).parents[2] / "shared" / "data"
real = pytest.mark.skipif(not REAL.is_dir(), reason="no real data sets beside the checkout")
WIDTH, HEIGHT = 60, 40


def kinds(defects):
    assert all(one.action == ACTIONS[one.kind] for one in defects)
    return [one.kind for one in defects]


def picture(path, mode="RGB", **options):
    """A noisy image of 60x40, in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path, **options)
    return path


# ---- generated scenes


def test_one_seed_gives_one_set_and_its_splits_differ():
    first, again, more = (
        generated.Scenes("train", 3, 4),
        generated.Scenes("train", 3, 4),
        generated.Scenes("train", 3, 9),
    )
    for i in range(4):
        assert torch.equal(first[i][0], again[i][0])
        assert torch.equal(first[i][0], more[i][0])
        assert all(torch.equal(first[i][1][key], more[i][1][key]) for key in ("boxes", "labels", "masks"))
    for other in (generated.Scenes("val", 3, 4), generated.Scenes("train", 4, 4)):
        assert not torch.equal(first[0][0], other[0][0])
        assert other.checksum != first.checksum == again.checksum


@pytest.mark.parametrize("size", [64, 128])
def test_a_scene_is_what_the_contract_says(size):
    ds = datasets.load("shapes", "val", seed=1, images=40, image_size=size)
    sides, most = [], 0
    for index, (image, target) in enumerate(ds[i] for i in range(len(ds))):
        assert image.dtype == torch.uint8
        assert image.shape == (3, size, size)
        assert target["image_id"] == index
        n = len(target["labels"])
        assert target["masks"].shape == (n, size, size)
        assert (target["masks"].sum(0) <= 1).all(), "each pixel belongs to one shape"
        inclusive = masks_to_boxes(target["masks"]) if n else torch.zeros(0, 4)
        assert torch.equal(target["boxes"], inclusive + torch.tensor([0.0, 0, 1, 1]))
        assert torch.equal(target["area"], target["masks"].sum((1, 2)).float())
        sides += (target["boxes"][:, 2:] - target["boxes"][:, :2]).amax(1).tolist()
        most = max(most, n)
    assert len(ds.classes) == 3
    assert 3 <= min(sides) <= 9
    assert size / 3 < max(sides) <= size / 2 + 1
    assert most >= 6


def test_scenes_refuse_what_they_cannot_draw():
    with pytest.raises(ValueError, match="splits train, val, test, not 'trainval'"):
        datasets.load("shapes", "trainval")
    with pytest.raises(ValueError, match="32 px or more"):
        datasets.load("shapes", "train", image_size=16)


# ---- Pascal VOC


def xml(*objects, size=(WIDTH, HEIGHT), filename=None):
    """A VOC annotation; an object is (name, xmin, ymin, xmax, ymax) and may end with its difficult flag."""
    text = "<annotation>"
    text += f"<filename>{filename}</filename>" if filename else ""
    text += f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>" if size else ""
    for name, *box in objects:
        corners = "".join(
            f"<{tag}>{value}</{tag}>" for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=False)
        )
        difficult = box[4] if len(box) > 4 else 0
        text += f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{corners}</bndbox></object>"
    return text + "</annotation>"


def voc(folder, annotations, **lists):
    """A VOC folder: id → text or bytes of its XML, each with an image; lists are splits."""
    (folder / "Annotations").mkdir(parents=True)
    for id, content in annotations.items():
        (folder / "Annotations" / f"{id}.xml").write_bytes(content if isinstance(content, bytes) else content.encode())
        picture(folder / "JPEGImages" / f"{id}.jpg")
    for split, ids in lists.items():
        (folder / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{id}\n" for id in ids))
    return folder


SOUND = ("cell", 11, 6, 30, 25)


def test_inclusive_integers_from_one_become_continuous_edges(tmp_path):
    """(1, 1, 60, 40) is all of a 60x40 image, and one pixel more or less is one pixel of the box."""
    voc(tmp_path, {"a": xml(("cell", 1, 1, 60, 40), ("cell", 11, 6, 30, 25, 1), ("door", 2, 2, 3, 3))})
    ds = datasets.load(tmp_path, "all")
    image, target = ds[0]
    assert (ds.classes, len(ds), ds.defects, ds.has_masks) == (("cell", "door"), 1, [], False)
    assert image.shape == (3, 40, 60)
    assert target["boxes"].tolist() == [[0, 0, 60, 40], [10, 5, 30, 25], [1, 1, 3, 3]]
    assert target["area"].tolist() == [2400, 400, 4]
    assert target["labels"].tolist() == [0, 0, 1]
    assert target["difficult"].tolist() == [False, True, False]
    assert not target["crowd"].any()


@pytest.mark.parametrize(
    ("box", "kind", "left"),
    [
        ((20, 10, 20, 30), ["zero area"], []),
        ((20, 10, 30, 10), ["zero area"], []),
        ((30, 25, 11, 6), ["inverted corners"], [[10, 5, 30, 25]]),
        ((0, 6, 61, 25), ["partly outside"], [[0, 5, 60, 25]]),
        ((61, 6, 70, 25), ["wholly outside"], []),
        ((-20, 6, -3, 25), ["wholly outside"], []),
        ((70, 25, 11, 6), ["inverted corners", "partly outside"], [[10, 5, 60, 25]]),
        (("nan", 6, 30, 25), ["not a number"], []),
        (("inf", 6, 30, 25), ["not a number"], []),
        (("1e999", 6, 30, 25), ["not a number"], []),
        (("9" * 5000, 6, 30, 25), ["not a number"], []),
        (("ten", 6, 30, 25), ["not a number"], []),
        (("", 6, 30, 25), ["not a number"], []),
        (("11.5", 6, 30, 25), ["fractional coordinate"], [[10.5, 5, 30, 25]]),
        ((" 11 ", 6, "30.0", 25), [], [[10, 5, 30, 25]]),
        ((11, 6, 30), ["missing tag"], []),
    ],
)
def test_a_broken_voc_box_is_repaired_or_dropped_and_its_neighbour_stays(tmp_path, box, kind, left):
    voc(tmp_path, {"a": xml(("cell", 1, 1, 5, 5), ("cell", *box))})
    ds = datasets.load(tmp_path, "all")
    assert kinds(ds.defects) == kind
    assert all((one.file, one.object) == ("a.jpg", "object 2 (cell)") for one in ds.defects)
    assert ds[0][1]["boxes"].tolist() == [[0, 0, 5, 5], *left]


def test_equal_boxes_are_taken_once_and_near_ones_are_reported(tmp_path):
    voc(tmp_path, {"a": xml(SOUND, SOUND, ("door", *SOUND[1:]), ("cell", 11, 6, 30, 26))})
    ds = datasets.load(tmp_path, "all")
    assert [(one.kind, one.object, one.detail) for one in ds.defects] == [
        ("duplicate", "object 2 (cell)", "of object 1 (cell)"),
        ("near-duplicate", "object 4 (cell)", "of object 1 (cell), IoU 0.952"),
    ]
    assert ds[0][1]["labels"].tolist() == [0, 1, 0]


LAUGHS = '<!DOCTYPE lolz [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>' + xml(("&b;", 1, 1, 5, 5))
OUTSIDE = '<!DOCTYPE annotation [<!ENTITY file SYSTEM "file:///etc/passwd">]>' + xml(("&file;", 1, 1, 5, 5))
BROKEN_XML = {
    "entity bomb": (LAUGHS, "hostile XML"),
    "external entity": (OUTSIDE, "hostile XML"),
    "a bomb in UTF-16": (LAUGHS.encode("utf-16"), "hostile XML"),
    "unclosed": (xml(SOUND)[:-9], "malformed annotation"),
    "unknown entity": (xml(("&b;", 1, 1, 5, 5)), "malformed annotation"),
    "not XML": ("cell 1 1 5 5", "malformed annotation"),
    "another document": ("<html><object/></html>", "malformed annotation"),
    "empty": ("", "malformed annotation"),
    "too large": (xml(SOUND) + " " * 2**22, "malformed annotation"),
    "null bytes": (b"\0" * 100, "malformed annotation"),
    "deep": ("<annotation>" + "<a>" * 10000, "malformed annotation"),
}


@pytest.mark.parametrize(("content", "kind"), BROKEN_XML.values(), ids=BROKEN_XML)
def test_an_image_with_a_broken_xml_is_skipped(tmp_path, content, kind):
    ds = datasets.load(voc(tmp_path, {"a": content, "b": xml(SOUND)}), "all")
    assert [(one.file, one.kind) for one in ds.defects] == [("a.xml", kind)]
    assert [entry.name for entry in ds.pictures] == ["b.jpg"]


def test_encodings_of_voc_files(tmp_path):
    annotations = {
        "bom": xml(SOUND).encode("utf-8-sig"),
        "chinese": ('<?xml version="1.0" encoding="GBK"?>' + xml(("细胞", 1, 1, 5, 5))).encode("gbk"),
        "latin": xml(("plaqué", 1, 1, 5, 5)).encode("latin-1"),
        "utf16": xml(SOUND).encode("utf-16"),
        "late": "\n\n<?xml version='1.0'?>" + xml(SOUND),
    }
    ds = datasets.load(voc(tmp_path, annotations), "all")
    assert [(one.file, one.kind) for one in ds.defects] == [("latin.xml", "encoding")]
    assert ds.classes == ("cell", "plaqué", "细胞")
    assert len(ds) == 5


def test_what_is_wrong_with_files_and_lists_of_a_voc_folder(tmp_path):
    annotations = {id: xml(SOUND) for id in ("sound", "gone", "cut", "empty", "text")} | {
        "mismatch": xml(SOUND, size=(40, 60)),
        "unsized": xml(SOUND, size=(0, 0)),
        "outside": xml(SOUND, filename="../../../etc/passwd"),
        "lost": xml(SOUND, filename="/etc/passwd"),
        "renamed": xml(SOUND, filename="other.jpg"),
        "nameless": xml(("", 1, 1, 5, 5)).replace("</annotation>", "<object><name>cell</name></object></annotation>"),
        "alike": xml(("Cell", 1, 1, 5, 5)),
    }
    voc(
        tmp_path,
        annotations,
        train=["sound", "sound", "absent", "../Annotations/sound", *[id for id in annotations if id != "sound"]],
    )
    images = tmp_path / "JPEGImages"
    (images / "gone.jpg").unlink()
    (images / "lost.jpg").unlink()
    (images / "renamed.jpg").rename(images / "other.jpg")
    (images / "cut.jpg").write_bytes((images / "cut.jpg").read_bytes()[:-500])
    (images / "empty.jpg").write_bytes(b"")
    (images / "text.jpg").write_text("not found")
    ds = datasets.load(tmp_path, "train")
    assert {(one.file, one.object, one.kind) for one in ds.defects} == {
        ("train.txt", "sound", "listed twice"),
        ("absent.xml", "", "missing annotation"),
        ("../Annotations/sound.xml", "", "missing annotation"),
        ("gone.xml", "", "missing image"),
        ("lost.xml", "", "path out of the folder"),
        ("outside.xml", "", "misleading filename"),
        ("cut.jpg", "", "unreadable image"),
        ("empty.jpg", "", "unreadable image"),
        ("text.jpg", "", "unreadable image"),
        ("mismatch.jpg", "", "size mismatch"),
        ("unsized.jpg", "", "missing size"),
        ("nameless.jpg", "object 1", "missing tag"),
        ("nameless.jpg", "object 2 (cell)", "missing tag"),
        (tmp_path.name, "", "similar classes"),
    }
    assert [entry.name for entry in ds.pictures] == [
        *("sound.jpg", "mismatch.jpg", "unsized.jpg", "outside.jpg", "other.jpg", "nameless.jpg", "alike.jpg"),
    ]
    assert [ds[i][1]["image_id"] for i in range(len(ds))] == list(range(7))
    assert ds[5][1]["boxes"].shape == (0, 4)
    text = datasets.summary(ds.defects)
    assert text.startswith("14 defects\n  3 unreadable image: image skipped; first: cut.jpg")
    assert "\n  1 size mismatch: size of the image used; mismatch.jpg (annotated 40x60, it is 60x40)" in text


def test_classes_are_those_of_the_whole_folder_or_the_voc_20(tmp_path):
    other = voc(tmp_path / "other", {"a": xml(SOUND), "b": xml(("axle", 1, 1, 5, 5))}, train=["a"], val=["b"])
    assert datasets.load(other, "train").classes == datasets.load(other, "val").classes == ("axle", "cell")
    assert datasets.load(other, "val")[0][1]["labels"].tolist() == [0]
    official = voc(tmp_path / "official", {"a": xml(("dog", 1, 1, 5, 5)), "b": xml(("cat", 1, 1, 5, 5))}, train=["a"])
    ds = datasets.load(official, "train")
    assert len(ds.classes) == 20
    assert ds.classes[ds[0][1]["labels"]] == "dog"
    chosen = datasets.load(other, "all", classes=("cell",))
    assert [(one.file, one.object, one.kind) for one in chosen.defects] == [
        ("b.jpg", "object 1 (axle)", "unknown class")
    ]


def test_layouts_and_splits_of_voc_folders(tmp_path):
    kit = tmp_path / "kit" / "VOCdevkit"
    voc(kit / "VOC2007", {"a": xml(("dog", 1, 1, 5, 5))}, train=["a"], val=[], dog_train=["a  1"])
    voc(kit / "VOC2012", {"a": xml(("cat", 1, 1, 5, 5)), "b": xml(("dog", 1, 1, 5, 5))}, train=["a", "b.jpg"])
    assert datasets.splits(kit) == datasets.splits(kit.parent) == ["all", "train", "val"]
    both = datasets.load(kit, "train")
    assert (both.name, len(both), len(datasets.load(kit / "VOC2007", "train"))) == ("VOC2007+VOC2012", 3, 1)
    plain = tmp_path / "plain"
    (plain / "annotations").mkdir(parents=True)
    for id, suffix in (("a", "png"), ("b", "JPG"), ("c", "jpeg")):
        (plain / "annotations" / f"{id}.xml").write_text(xml(SOUND))
        picture(plain / "images" / f"{id}.{suffix}", format="PNG" if suffix == "png" else "JPEG")
    picture(plain / "images" / "unlabelled.png")
    ds = datasets.load(plain, "all")
    assert (len(ds), kinds(ds.defects)) == (3, ["missing annotation"])
    with pytest.raises(ValueError, match=r"plain has no split 'train'; it has all"):
        datasets.load(plain, "train")
    exported = tmp_path / "exported"
    for split in ("train", "valid"):
        picture(exported / split / "a.jpg")
        (exported / split / "a.xml").write_text(xml(SOUND))
    assert datasets.splits(exported) == ["all", "train", "valid"]
    assert len(datasets.load(exported, "val")) == 1
    assert len(datasets.load(exported, "all")) == 2


def test_a_split_can_be_taken_in_parts(tmp_path):
    ids = [f"{number:02}" for number in range(10)]
    voc(tmp_path, {id: xml(SOUND) for id in ids}, train=ids)
    parts = {
        name: [Path(picture.name).stem for picture in datasets.load(tmp_path, name).pictures]
        for name in ("train[:80%]", "train[80%:]", "all[15%:30%]")
    }
    assert parts == {"train[:80%]": ids[:8], "train[80%:]": ids[8:], "all[15%:30%]": ids[2:3]}
    for wrong in ("train[:8]", "train[80%:20%]", "train[:120%]", "train[:80%"):
        with pytest.raises(ValueError, match=r"train\[:80%\]"):
            datasets.load(tmp_path, wrong)


def test_a_part_without_an_image_is_refused_with_what_there_is(tmp_path):
    voc(tmp_path, {id: xml(SOUND) for id in "abc"}, train="abc", val="")
    with pytest.raises(
        ValueError,
        match=r"'train\[50%:51%\]' holds none of the 3 images of 'train'; take a larger part, as train\[:80%\]",
    ):
        datasets.load(tmp_path, "train[50%:51%]")
    for split in ("val", "val[:80%]"):
        with pytest.raises(
            datasets.Unreadable,
            match=r"no image of split 'val.*' can be used; the splits are all, train, val\nval.txt: empty list",
        ):
            datasets.load(tmp_path, split)


def test_a_set_that_is_not_divided_says_how_to_divide_it(tmp_path):
    undivided = voc(tmp_path / "voc", {"a": xml(SOUND)}), coco(tmp_path / "json" / "a.json", [entry()])
    trained = coco(tmp_path / "train" / "train" / "_annotations.coco.json", [entry()]).parents[1]
    for path, split, whole in ((undivided[0], "train", "all"), (undivided[1], "val", "all"), (trained, "val", "train")):
        with pytest.raises(
            ValueError, match=rf'no split .* train_split "{whole}\[:80%\]", val_split "{whole}\[80%:\]"'
        ):
            datasets.check_splits(path, split)
        datasets.check_splits(path, f"{whole}[:80%]", f"{whole}[80%:]")
    datasets.check_splits("shapes", "train", "val")
    for wrong in ("all", "train[:80%]"):
        with pytest.raises(ValueError, match="shapes have the splits train, val, test"):
            datasets.check_splits("shapes", wrong)


def test_pictures_in_both_are_counted_by_file_and_by_content(tmp_path):
    """a and b are also in the second list, c is a copy of another name, d has the size of a but other bytes."""
    images = voc(tmp_path, {id: xml(SOUND) for id in "abcde"}, first="abe", second="abcd") / "JPEGImages"
    for id, shade in zip("abcde", (1, 2, 5, 4, 5), strict=True):
        Image.new("RGB", (WIDTH, HEIGHT), (shade,) * 3).save(images / f"{id}.jpg", "BMP")
    first, second = (datasets.load(tmp_path, split).pictures for split in ("first", "second"))
    assert datasets.in_both(first, second) == 3
    assert datasets.in_both(first, first) == 3 and datasets.in_both(first, second[3:]) == 0


def test_the_checksum_follows_a_changed_annotation_or_image(tmp_path):
    voc(tmp_path, {"a": xml(SOUND), "b": xml(SOUND)})
    first = datasets.load(tmp_path, "all").checksum
    assert datasets.load(tmp_path, "all").checksum == first
    (tmp_path / "Annotations" / "a.xml").write_text(xml(("cell", 11, 6, 30, 26)))
    second = datasets.load(tmp_path, "all").checksum
    picture(tmp_path / "JPEGImages" / "b.jpg", quality=30)
    assert len({first, second, datasets.load(tmp_path, "all").checksum}) == 3


@real
def test_bccd_has_the_defects_its_readme_lists():
    sets = {split: datasets.load(REAL / "bccd", split) for split in ("train", "val", "test", "all")}
    assert [len(ds) for ds in sets.values()] == [205, 87, 72, 364]
    counts = {split: Counter(kinds(ds.defects)) for split, ds in sets.items()}
    assert counts["train"] == {"near-duplicate": 4, "zero area": 1}
    assert counts["val"] == {"near-duplicate": 2, "zero area": 1}
    assert counts["test"] == {"near-duplicate": 1}
    assert counts["all"] == {"near-duplicate": 7, "zero area": 2}
    labels = Counter(item.label for entry in sets["all"].pictures for item in entry.objects)
    assert {sets["all"].classes[label]: count for label, count in labels.items()} == {
        "RBC": 4155 - 2,
        "WBC": 372,
        "Platelets": 361,
    }


@real
def test_voc2007_gives_its_readmes_numbers():
    ds = datasets.load(REAL / "voc2007", "val")
    assert (len(ds), ds.name, len(ds.classes), ds.defects) == (1000, "VOC2007", 20, [])
    counts = Counter((ds.classes[item.label], item.difficult) for entry in ds.pictures for item in entry.objects)
    assert (counts["person", False], counts["person", True], counts["sheep", False], counts["sheep", True]) == (
        931,
        185,
        47,
        18,
    )
    assert sum(counts.values()) == 2529 + 635


# ---- COCO


def polygon(x1, y1, x2, y2):
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


def entry(id=1, image_id=7, category_id=3, bbox=(10, 5, 20, 20), **more):
    return dict(id=id, image_id=image_id, category_id=category_id, bbox=list(bbox), iscrowd=0) | more


def coco(file, annotations, images=(), categories=((5, "dog"), (3, "cat"))):
    """A COCO JSON with image 7 beside it, and more images where given."""
    listed = [dict(id=7, file_name="seven.jpg", width=WIDTH, height=HEIGHT), *images]
    file.parent.mkdir(parents=True, exist_ok=True)
    names = [dict(id=id, name=name) for id, name in categories]
    file.write_text(json.dumps(dict(images=listed, annotations=annotations, categories=names)))
    picture(file.parent / "seven.jpg")
    return file


def test_a_coco_json_by_hand(tmp_path):
    """xywh (10, 5, 20, 20) ends at (30, 25); category ids 3 and 5 become 0 and 1; an own area is kept; a crowd is
    flagged."""
    annotations = [
        entry(area=123.5),
        entry(2, category_id=5, bbox=(0.25, 0.5, 59.75, 39.5)),
        entry(3, iscrowd=1, bbox=(1, 1, 2, 2)),
    ]
    ds = datasets.load(coco(tmp_path / "a.json", annotations), "all")
    image, target = ds[0]
    assert (ds.classes, ds.defects, ds.has_masks, target["image_id"]) == (("cat", "dog"), [], False, 7)
    assert image.shape == (3, 40, 60)
    assert target["boxes"].tolist() == [[10, 5, 30, 25], [0.25, 0.5, 60, 40], [1, 1, 3, 3]]
    assert target["area"].tolist() == [123.5, 59.75 * 39.5, 4]
    assert target["labels"].tolist() == [0, 1, 0]
    assert target["crowd"].tolist() == [False, False, True]
    assert "masks" not in target


def test_masks_are_those_of_pycocotools(tmp_path):
    blob = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    blob[5:25, 10:30] = np.random.default_rng(0).integers(0, 2, (20, 20))
    packed = pycocotools.mask.encode(blob)
    flat = np.r_[0, blob.ravel(order="F"), 1 - blob.ravel(order="F")[-1]]
    runs = np.diff(np.r_[0, np.flatnonzero(np.diff(flat[:-1])), blob.size]).tolist()
    triangle, square = [10.3, 5.1, 29.8, 6.4, 18.2, 24.9], [2, 2, 8, 2, 8, 8, 2, 8]
    segmentations = [
        [triangle, square],
        dict(size=[HEIGHT, WIDTH], counts=packed["counts"].decode()),
        dict(size=[HEIGHT, WIDTH], counts=runs),
    ]
    annotations = [
        entry(id, segmentation=each, iscrowd=id > 0, bbox=(10, 5, 20, 20 - id)) for id, each in enumerate(segmentations)
    ]
    ds = datasets.load(coco(tmp_path / "a.json", annotations), "all")
    drawn = ds[0][1]["masks"].numpy()
    both = pycocotools.mask.merge(pycocotools.mask.frPyObjects([triangle, square], HEIGHT, WIDTH))
    assert (ds.has_masks, ds.defects) == (True, [])
    assert np.array_equal(drawn[0], pycocotools.mask.decode(both).astype(bool))
    assert np.array_equal(drawn[1], blob.astype(bool))
    assert np.array_equal(drawn[2], blob.astype(bool))


BROKEN_ENTRIES = {
    "no width": (entry(2, bbox=(10, 5, 0, 20)), ["zero area"], None),
    "COCO's own annotation 918": (entry(2, bbox=(29.65, 18.33, 1.03, 0.0)), ["zero area"], None),
    "negative height": (entry(2, bbox=(10, 25, 20, -20)), ["inverted corners"], [10, 5, 30, 25]),
    "over the edge": (entry(2, bbox=(50, 30, 20, 20)), ["partly outside"], [50, 30, 60, 40]),
    "over by rounding": (entry(2, bbox=(50, 30, 10.0000001, 10)), [], [50, 30, 60, 40]),
    "beside the image": (entry(2, bbox=(60, 30, 5, 5)), ["wholly outside"], None),
    "NaN": (entry(2, bbox=(float("nan"), 5, 20, 20)), ["not a number"], None),
    "infinite": (entry(2, bbox=(10, 5, float("inf"), 20)), ["not a number"], None),
    "text": (entry(2, bbox=("a", 5, 20, 20)), ["not a number"], None),
    "null": (entry(2, bbox=(None, 5, 20, 20)), ["not a number"], None),
    "huge": (entry(2, bbox=(10**400, 5, 20, 20)), ["not a number"], None),
    "three numbers": (entry(2, bbox=(10, 5, 20)), ["missing tag"], None),
    "no box": (dict(id=2, image_id=7, category_id=3), ["missing tag"], None),
    "no such image": (entry(2, image_id=8), ["unknown image"], None),
    "no image": (dict(id=2, category_id=3, bbox=[1, 1, 2, 2]), ["unknown image"], None),
    "an image id that is a list": (entry(2, image_id=[7]), ["unknown image"], None),
    "no such category": (entry(2, category_id=4), ["unknown class"], None),
    "a category that is a dict": (entry(2, category_id={}), ["unknown class"], None),
    "same id": (entry(1, bbox=(20, 5, 20, 20)), ["repeated id"], [20, 5, 40, 25]),
    "same box": (entry(2, bbox=(1, 1, 4, 4)), ["duplicate"], None),
    "almost the same box": (entry(2, bbox=(1, 1, 4, 4.1)), ["near-duplicate"], [1, 1, 5, 5.1]),
    "a crowd over it": (entry(2, bbox=(1, 1, 4, 4), iscrowd=1), [], [1, 1, 5, 5]),
    "not a dict": ([1, 2, 3], ["malformed entry"], None),
}


@pytest.mark.parametrize(("broken", "kind", "left"), BROKEN_ENTRIES.values(), ids=BROKEN_ENTRIES)
def test_a_broken_coco_entry_is_repaired_or_dropped_and_its_neighbour_stays(tmp_path, broken, kind, left):
    ds = datasets.load(coco(tmp_path / "a.json", [entry(1, bbox=(1, 1, 4, 4)), broken]), "all")
    assert kinds(ds.defects) == kind
    boxes = ds[0][1]["boxes"]
    assert torch.equal(boxes, torch.tensor([[1, 1, 5, 5], *([left] if left else [])], dtype=torch.float32))


BROKEN_MASKS = {
    "two corners": [[1, 1, 5, 5]],
    "odd": [[1, 1, 5, 5, 1, 5, 1]],
    "NaN": [[float("nan"), 1, 5, 5, 1, 5]],
    "text": "mask",
    "a flat list": [1, 1, 5, 1, 5, 5],
    "runs of another size": dict(size=[4, 4], counts=[0, 16]),
    "runs too short": dict(size=[HEIGHT, WIDTH], counts=[0, 16]),
    "negative runs": dict(size=[HEIGHT, WIDTH], counts=[-100, HEIGHT * WIDTH + 100]),
    "runs of text": dict(size=[HEIGHT, WIDTH], counts=["a"]),
    "nonsense": dict(size=[HEIGHT, WIDTH], counts="zzzz~~~~"),
    "not ASCII": dict(size=[HEIGHT, WIDTH], counts="é"),
    "no runs": dict(size=[HEIGHT, WIDTH]),
}


@pytest.mark.parametrize("segmentation", BROKEN_MASKS.values(), ids=BROKEN_MASKS)
def test_where_a_mask_is_broken_the_box_is_the_mask(tmp_path, segmentation):
    sound = entry(1, bbox=(1, 1, 4, 4), segmentation=polygon(1, 1, 5, 5))
    ds = datasets.load(coco(tmp_path / "a.json", [sound, entry(2, segmentation=segmentation)]), "all")
    masks = ds[0][1]["masks"]
    assert kinds(ds.defects) == ["malformed mask"]
    assert masks[0].sum() == 16
    assert masks[1].sum() == masks[1, 5:25, 10:30].sum() == 400


def test_a_mask_that_others_have_is_missed_and_far_corners_do_no_harm(tmp_path):
    far = [[-1e30, -1e30, 1e30, -1e30, 1e30, 1e30, -1e30, 1e30]]
    ds = datasets.load(
        coco(tmp_path / "a.json", [entry(1, segmentation=[]), entry(2, bbox=(1, 1, 4, 4), segmentation=far)]), "all"
    )
    assert [(one.kind, one.object) for one in ds.defects] == [("missing mask", "annotation 1 (cat)")]
    assert ds[0][1]["masks"].sum((1, 2)).tolist() == [400, 2400]


def test_what_is_wrong_with_the_images_of_a_coco_json(tmp_path):
    size = dict(width=WIDTH, height=HEIGHT)
    images = [
        dict(id=7, file_name="other.jpg", **size),
        dict(id=8, file_name="seven.jpg", **size),
        dict(id=9, file_name="../secret.jpg", **size),
        dict(id=10, file_name="C:\\images\\a.jpg", **size),
        dict(id=11, file_name="gone.jpg", **size),
        dict(id=12, file_name="x" * 5000 + ".jpg", **size),
        dict(id=13, **size),
        dict(id=14, file_name="unsized.jpg"),
        dict(id=15, file_name="sub\\turned.jpg", width=HEIGHT, height=WIDTH),
        dict(id=[16], file_name="listed.jpg", **size),
        None,
    ]
    for name in ("other.jpg", "unsized.jpg", "sub/turned.jpg", "../secret.jpg"):
        picture(tmp_path / "set" / name)
    annotations = [entry(1), entry(2, 8, bbox=(1, 1, 4, 4)), entry(3, 14), entry(4, 11), entry(5, 15)]
    file = coco(tmp_path / "set" / "a.json", annotations, images, categories=((3, "cat"), (3, "dog"), (4, None)))
    ds = datasets.load(file, "all")
    assert Counter((one.kind, one.object) for one in ds.defects) == Counter(
        [
            *(("repeated category", "category 3"), ("malformed entry", "")),
            *(("listed twice", "image 7"), ("listed twice", "image 8"), ("unnamed image", "image 13")),
            *(("malformed entry", ""), ("malformed entry", "")),
            *(("path out of the folder", "image 9"), ("path out of the folder", "image 10")),
            *(("missing image", "image 11"), ("missing image", "image 12")),
            *(("missing size", ""), ("size mismatch", "")),
        ]
    )
    assert [(ds[i][1]["image_id"], len(ds[i][1]["labels"])) for i in range(len(ds))] == [(7, 2), (14, 1), (15, 1)]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"images": 3}', "[" * 100000, b"\xff\xfe{", b"\0\0"])
def test_a_broken_json_says_so(tmp_path, content):
    file = tmp_path / "a.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(datasets.Unreadable, match=r"a\.json: malformed JSON \(.*\): not opened"):
        datasets.load(file, "all")


def test_layouts_and_splits_of_coco_folders(tmp_path):
    official = tmp_path / "coco"
    for split in ("train2017", "val2017"):
        coco(official / split / "a.json", [entry()]).rename(official / f"instances_{split}.json")
        (official / "annotations").mkdir(exist_ok=True)
        (official / f"instances_{split}.json").rename(official / "annotations" / f"instances_{split}.json")
    (official / "annotations" / "captions_val2017.json").write_text("{}")
    assert datasets.splits(official) == ["train2017", "val2017"]
    assert len(datasets.load(official, "train")) == len(datasets.load(official, "val2017")) == 1
    one = official / "annotations" / "instances_val2017.json"
    assert datasets.load(one, "val").name == datasets.load(one, "all").name == "coco"
    with pytest.raises(ValueError, match=r"no split 'train'; it has all, val2017; name the folder"):
        datasets.load(one, "train")
    exported = tmp_path / "exported"
    for split in ("train", "valid"):
        coco(exported / split / "_annotations.coco.json", [entry()])
    assert datasets.splits(exported) == ["train", "valid"]
    assert datasets.load(exported, "val").name == "exported"


# ---- images


@pytest.mark.parametrize(
    ("mode", "suffix"), [("L", "jpg"), ("CMYK", "jpg"), ("P", "png"), ("RGBA", "png"), ("1", "png"), ("LA", "png")]
)
def test_images_of_other_colours_are_converted(tmp_path, mode, suffix):
    voc(tmp_path, {"a": xml(SOUND)})
    (tmp_path / "JPEGImages" / "a.jpg").unlink()
    path = picture(tmp_path / "JPEGImages" / f"a.{suffix}", mode)
    ds = datasets.load(tmp_path, "all")
    assert (kinds(ds.defects), ds.defects[0].detail) == (["not RGB"], f"(mode {mode})")
    with Image.open(path) as image:
        assert np.array_equal(ds[0][0].permute(1, 2, 0).numpy(), np.array(image.convert("RGB")))


def test_sixteen_bit_grey_keeps_its_range(tmp_path):
    voc(tmp_path, {"a": xml(SOUND)})
    (tmp_path / "JPEGImages" / "a.jpg").unlink()
    ramp = np.linspace(0, 65535, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "JPEGImages" / "a.png")
    image = datasets.load(tmp_path, "all")[0][0]
    assert (int(image.min()), int(image.max()), int(image[0].float().mean())) == (0, 255, 127)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_is_followed_where_the_annotated_size_is_the_turned_one(tmp_path, orientation):
    """Orientations 5 to 8 exchange the sides; the annotation says whether its maker saw that."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name, size in (("stored", (WIDTH, HEIGHT)), ("seen", (HEIGHT, WIDTH))):
        picture(voc(tmp_path / name, {"a": xml(SOUND, size=size)}) / "JPEGImages" / "a.jpg", exif=exif)
    stored, seen = (datasets.load(tmp_path / name, "all") for name in ("stored", "seen"))
    upright, left = ["EXIF not followed"] * (orientation > 1), stored[0][0]
    assert (kinds(stored.defects), left.shape) == (upright, (3, HEIGHT, WIDTH))
    if orientation < 5:
        assert kinds(seen.defects) == [*upright, "size mismatch"]
        assert seen[0][0].shape == left.shape
    else:
        turned = {5: left.mT, 6: left.flip(1).mT, 7: left.flip(1, 2).mT, 8: left.mT.flip(1)}[orientation]
        assert kinds(seen.defects) == ["turned by EXIF"]
        assert torch.equal(seen[0][0], turned)


def chunk(kind, content):
    """One chunk of a PNG, with its checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_a_picture_that_breaks_late_is_skipped_by_who_reads(tmp_path):
    """A PNG with sound checksums around pixels that are none, an image that goes missing, and one that changes its
    size."""
    voc(tmp_path, {id: xml(SOUND) for id in "abcd"})
    images = tmp_path / "JPEGImages"
    (images / "a.jpg").unlink()
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 0))
    (images / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b"no pixels") + chunk(b"IEND", b""))
    ds = datasets.load(tmp_path, "all")
    assert (len(ds), ds.defects) == (4, [])
    (images / "b.jpg").unlink()
    Image.new("RGB", (10, 10)).save(images / "c.jpg")
    for index in range(3):
        with pytest.raises(datasets.Unreadable, match=r"unreadable image .*: image skipped"):
            ds[index]
    assert ds[3][0].shape == (3, HEIGHT, WIDTH)
    table = datasets.check(ds)
    assert [one.file for one in ds.defects] == ["a.png", "b.jpg", "c.jpg"]
    assert table[["class", "objects", "images"]].values.tolist() == [["cell", 1, 1], ["all", 1, 1]]


def test_a_header_is_read_without_decoding_and_a_bomb_is_not_opened(tmp_path, monkeypatch):
    path = picture(tmp_path / "a.jpg")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    assert header(path)[:3] == (WIDTH, HEIGHT, "RGB")
    size = struct.pack(">II", 30000, 30000)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size + b"\x08\x02\0\0\0") + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(datasets.Unreadable, match="pixels"):
        header(tmp_path / "bomb.png")


@pytest.mark.filterwarnings("ignore")  # Pillow's, of what it reads all the same
def test_damaged_files_of_any_kind_never_raise_anything_else(tmp_path):
    """A few hundred random cuts and flips of every format, opened and read."""
    rng = np.random.default_rng(0)
    for suffix in ("jpg", "png", "webp", "bmp", "gif", "tif"):
        buffer = io.BytesIO()
        Image.open(picture(tmp_path / f"sound.{suffix}")).save(
            buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper())
        )
        sound = np.frombuffer(buffer.getvalue(), dtype=np.uint8)
        assert header(tmp_path / f"sound.{suffix}")[:2] == (WIDTH, HEIGHT)
        for turn in range(40):
            damaged = sound.copy()[: rng.integers(1, len(sound)) if turn % 2 else len(sound)]
            damaged[rng.integers(0, min(len(damaged), 400), 8)] = rng.integers(0, 256, 8)
            file = tmp_path / f"damaged.{suffix}"
            file.write_bytes(damaged.tobytes())
            try:
                header(file)
                decode(file, turn=False)
            except datasets.Unreadable as error:
                assert kinds(error.defects) == ["unreadable image"]


# ---- the command


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
    assert ["absent.xml", "missing annotation", "image skipped"] in table
    assert ["cell", "1", "1", "0", "0", "20.0"] in table
    for arguments in ([str(tmp_path / "nowhere")], [str(broken), "--split", "test"], ["voc2012"]):
        assert main(["data", "check", *arguments]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert "no data set at" in errors[0]
    assert "no split 'test'; it has all, train" in errors[1]
    assert "giou-repro data download voc2012" in errors[2]


def test_a_set_of_which_nothing_is_left_is_refused_with_the_reasons_and_still_reported(tmp_path, capsys):
    voc(tmp_path, {"a": LAUGHS, "b": ""})
    with pytest.raises(datasets.Unreadable, match="2 defects\n  1 hostile XML"):
        datasets.load(tmp_path, "all")
    assert main(["data", "check", str(tmp_path)]) == 1
    assert "nothing of it can be used" in capsys.readouterr().out


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
