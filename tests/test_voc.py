"""Pascal VOC folders: what is read, which defects it has, what is done about them."""

from collections import Counter
from pathlib import Path

import pytest
from builders import HEIGHT, LAUGHS, SOUND, WIDTH, kinds, picture, voc, xml
from PIL import Image

from giou_repro.data import datasets
from giou_repro.data.defects import Unreadable, summary
from giou_repro.data.files import in_both

REAL = Path(__file__).parents[2] / "shared" / "data"
real = pytest.mark.skipif(not REAL.is_dir(), reason="no real data sets beside the checkout")


def test_an_image_without_an_xml_is_background_where_the_user_says_so(tmp_path):
    voc(tmp_path, {"a": xml(SOUND), "b": ""}, train="abc")
    picture(tmp_path / "JPEGImages" / "c.jpg")
    ds = datasets.load(tmp_path, "train", background=True)
    assert kinds(ds.defects) == ["malformed annotation"]
    assert [len(target["labels"]) for _, target in ds] == [1, 0]


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
    text = summary(ds.defects)
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


def test_difficult_may_be_a_number_or_a_word(tmp_path):
    words = ("0", "1", "0.0", "1.0", "yes", "no", "True", "FALSE", "", "2")
    voc(tmp_path, {"a": xml(*[("cell", n, 1, n + 9, 9, word) for n, word in enumerate(words, 1)])})
    flags = datasets.load(tmp_path, "all")[0][1]["difficult"].tolist()
    assert flags == [False, True, False, True, True, False, True, False, False, True]


def test_pictures_in_both_are_counted_by_file_and_by_content(tmp_path):
    """a and b are also in the second list, c is a copy of another name, d has the size of a but other bytes."""
    images = voc(tmp_path, {id: xml(SOUND) for id in "abcde"}, first="abe", second="abcd") / "JPEGImages"
    for id, shade in zip("abcde", (1, 2, 5, 4, 5), strict=True):
        Image.new("RGB", (WIDTH, HEIGHT), (shade,) * 3).save(images / f"{id}.jpg", "BMP")
    first, second = (datasets.load(tmp_path, split).pictures for split in ("first", "second"))
    assert in_both(first, second) == 3
    assert in_both(first, first) == 3 and in_both(first, second[3:]) == 0


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


# ---- what is not as VOC has it


@pytest.mark.parametrize(
    ("old", "new", "kind", "left"),
    [
        ("object>", "Object>", ["tag in another case"], [[10, 5, 30, 25]]),
        ("bndbox>", "bndBox>", ["tag in another case"], [[10, 5, 30, 25]]),
        ("xmin>", "XMin>", ["tag in another case"], [[10, 5, 30, 25]]),
        ("<annotation>", '<annotation xmlns="http://a.b/c">', [], [[10, 5, 30, 25]]),
        ("<object>", "<objects><object>", [], [[10, 5, 30, 25]]),
        ("</bndbox>", "</bndbox><bndbox><xmin>1</xmin></bndbox>", ["repeated tag"], [[10, 5, 30, 25]]),
        ("<xmin>", "<xmin>11</xmin><xmin>", ["repeated tag"], [[10, 5, 30, 25]]),
        ("</object>", "<part><name>a</name><bndbox/></part><part/></object>", [], [[10, 5, 30, 25]]),
    ],
)
def test_tags_in_another_place_case_or_number_are_read_and_told(tmp_path, old, new, kind, left):
    text = xml(SOUND).replace(old, new)
    text = text.replace("</annotation>", "</objects></annotation>") if "<objects>" in new else text
    ds = datasets.load(voc(tmp_path, {"a": text}), "all")
    assert kinds(ds.defects) == kind
    assert ds[0][1]["boxes"].tolist() == left


def test_a_filename_that_names_another_image_is_told_and_one_that_finds_it_is_followed(tmp_path):
    """b.xml names a.jpg, which has an own annotation; c.xml finds d.jpg, by its own name as by that of the image."""
    names = {"a": None, "b": "a.jpg", "c": "d.jpg", "e": "of_old.jpg"}
    voc(tmp_path, {id: xml(SOUND, filename=name) for id, name in names.items()}, train="abde", val="c")
    (tmp_path / "JPEGImages" / "c.jpg").rename(tmp_path / "JPEGImages" / "d.jpg")
    for split, found in {"all": "abde", "train": "abde", "val": "d"}.items():
        ds = datasets.load(tmp_path, split)
        assert sorted(picture.name for picture in ds.pictures) == [f"{name}.jpg" for name in found]
        told = [("b.xml", "misleading filename", "('a.jpg')")] if split != "val" else []
        assert [(one.file, one.kind, one.detail) for one in ds.defects] == told


@pytest.mark.parametrize("name", ["/home/ann/a.jpg", "C:\\Users\\ann\\a.jpg", "../images/a.png", "train/a.jpg", "a"])
def test_a_filename_with_the_path_where_it_was_annotated_is_right(tmp_path, name):
    ds = datasets.load(voc(tmp_path, {"a": xml(SOUND, filename=name)}), "all")
    assert (len(ds), ds.defects) == (1, [])


@pytest.mark.parametrize("folder", ["annots", "labels", "xmls"])
def test_the_folders_of_other_tools_are_found(tmp_path, folder):
    voc(tmp_path, {"a": xml(SOUND)}, train="a")
    (tmp_path / "Annotations").rename(tmp_path / folder)
    (tmp_path / "JPEGImages").rename(tmp_path / "images")
    assert (len(datasets.load(tmp_path, "train")), datasets.splits(tmp_path)) == (1, ["all", "train"])


def test_an_image_of_two_annotations_has_those_of_its_own_name_or_of_one(tmp_path):
    """b.xml names a.jpg, which has a.xml; c.xml and d.xml both name e.jpg; none of them has an image of its own."""
    voc(tmp_path, {id: xml(SOUND, filename=f"{name}.jpg") for id, name in zip("abcd", "aaee", strict=True)})
    for id in "bcd":
        (tmp_path / "JPEGImages" / f"{id}.jpg").rename(tmp_path / "JPEGImages" / "e.jpg")
    ds = datasets.load(tmp_path, "all")
    assert [(one.file, one.kind) for one in ds.defects] == [("b.xml", "annotated twice"), ("c.xml", "annotated twice")]
    assert [picture.name for picture in ds.pictures] == ["a.jpg", "e.jpg"]


def test_two_images_of_one_name_are_told_unless_the_xml_says_which(tmp_path):
    voc(tmp_path, {"a": xml(SOUND), "b": xml(SOUND, filename="b.png")})
    for name in ("a.png", "b.png"):
        picture(tmp_path / "JPEGImages" / name)
    ds = datasets.load(tmp_path, "all")
    assert [(one.file, one.kind) for one in ds.defects] == [("a.xml", "several images")]
    assert [picture.name for picture in ds.pictures] == ["a.jpg", "b.png"]


@pytest.mark.parametrize(
    ("annotation", "image", "lies"),
    [
        ("Annotations/a.xml", "JPEGImages/train/a.jpg", "JPEGImages/train/a.jpg"),
        ("Annotations/a.xml", "photos/a.jpg", "photos/a.jpg"),
        ("Annotations/a.xml", "JPEGImages/A.jpg", "JPEGImages/A.jpg"),
        ("Annotations/café.xml", "JPEGImages/cafe\u0301.jpg", "JPEGImages/cafe\u0301.jpg"),
        ("Annotations/train/a.xml", "JPEGImages/a.jpg", "Annotations/train/a.xml"),
    ],
)
def test_what_is_missing_is_told_with_the_file_that_lies_beside(tmp_path, annotation, image, lies):
    voc(tmp_path, {"sound": xml(SOUND)}, train=["sound", Path(annotation).stem])
    (tmp_path / annotation).parent.mkdir(exist_ok=True)
    (tmp_path / annotation).write_text(xml(SOUND))
    picture(tmp_path / image)
    (told,) = datasets.load(tmp_path, "train").defects
    assert told.kind == ("missing annotation" if lies.endswith("xml") else "missing image")
    assert told.detail.endswith(f"; there is {lies!r})")
    assert " is not in Annotations, ." in told.detail or " is not in JPEGImages, ." in told.detail


@pytest.mark.parametrize(
    ("boxes", "kind"),
    [
        ([(0.1, 0.2, 0.5, 0.9)] * 2, ["normalised box"] * 2 + ["no object"]),
        ([(0, 0, 1, 1)], ["normalised box", "no object"]),
        ([(x, x, x + 10, x + 8) for x in range(1, 21)], ["boxes in one corner"]),
        ([(x, x, x + 10, x + 8) for x in (*range(1, 21), 35)], ["boxes in one corner"]),
        ([(x, x, x + 10, x + 8) for x in (*range(1, 21), 37)], []),
        ([(1, 1, 2, 3), (30, 30, 50, 60)], []),
    ],
)
def test_boxes_in_other_units_are_told(tmp_path, boxes, kind):
    folder = voc(tmp_path, {"a": xml(*[("cell", *box) for box in boxes], size=(90, 90))})
    Image.new("RGB", (90, 90)).save(folder / "JPEGImages" / "a.jpg")
    try:
        defects = datasets.load(folder, "all").defects
    except Unreadable as error:
        defects = error.defects
    assert [one.kind for one in defects if one.kind != "near-duplicate"] == kind
