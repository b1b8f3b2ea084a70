"""COCO JSON: what is read, which defects it has, what is done about them."""

from collections import Counter

import numpy as np
import pycocotools.mask
import pytest
import torch
from builders import HEIGHT, WIDTH, coco, entry, kinds, picture, polygon
from PIL import Image

from giou_repro.data import datasets
from giou_repro.data.defects import Unreadable


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
    assert (ds.has_masks, kinds(ds.defects)) == (True, ["mask apart"])  # of the square, out of its box
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
    assert [(one.kind, one.object) for one in ds.defects] == [
        ("mask apart", "annotation 2 (cat)"),
        ("missing mask", "annotation 1 (cat)"),
    ]
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
    file = coco(
        tmp_path / "set" / "a.json", annotations, images, categories=((3, "cat"), (4, "cat"), (4, "dog"), (5, None))
    )
    ds = datasets.load(file, "all")
    assert Counter((one.kind, one.object) for one in ds.defects) == Counter(
        [
            *(("ambiguous category", "category 4"), ("malformed entry", "")),
            *(("ambiguous id", "image 7"), ("listed twice", "image 8"), ("unnamed image", "image 13")),
            *(("malformed entry", ""), ("malformed entry", "")),
            *(("path out of the folder", "image 9"), ("path out of the folder", "image 10")),
            *(("missing image", "image 11"), ("missing image", "image 12")),
            *(("missing size", ""), ("size mismatch", "")),
        ]
    )
    assert [(ds[i][1]["image_id"], len(ds[i][1]["labels"])) for i in range(len(ds))] == [(14, 1), (15, 1)]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"images": 3}', "[" * 100000, b"\xff\xfe{", b"\0\0"])
def test_a_broken_json_says_so(tmp_path, content):
    file = tmp_path / "a.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(Unreadable, match=r"a\.json: malformed JSON \(.*\): not opened"):
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


# ---- what is not as COCO has it


def test_no_annotation_of_an_id_that_two_images_share_goes_to_either(tmp_path):
    """Merged files: 7 is seven.jpg and other.jpg. Image 8, once more under another spelling of its path, is sound."""
    names = {7: "other.jpg", 8: "sub/8.jpg", 9: "./sub\\8.jpg"}
    images = [dict(id=id, file_name=name, width=WIDTH, height=HEIGHT) for id, name in names.items()]
    for name in ("other.jpg", "sub/8.jpg"):
        picture(tmp_path / name)
    boxes = (1, 1, 4, 4), (2, 2, 9, 9), (30, 5, 9, 9)
    annotations = [entry(id, id, bbox=box) for id, box in zip((7, 8, 9), boxes, strict=True)]
    ds = datasets.load(coco(tmp_path / "a.json", annotations, images), "all")
    assert [(one.kind, one.object) for one in ds.defects] == [("listed twice", "image 9"), ("ambiguous id", "image 7")]
    assert ds.defects[1].detail == "(other.jpg, seven.jpg)"
    assert len(ds) == 1
    assert ds[0][1]["boxes"].tolist() == [[2, 2, 11, 11], [30, 5, 39, 14]]


def test_two_categories_of_one_name_are_one_class_in_training_and_validation(tmp_path):
    categories = ((1, "dog"), (2, "cat"), (5, "dog "))
    file = coco(
        tmp_path / "a.json", [entry(id, category_id=id, bbox=(id, 1, 9, 9)) for id in (1, 2, 5)], (), categories
    )
    trained = datasets.load(file, "all")
    validated = datasets.load(file, "all", classes=trained.classes)
    assert trained.classes == ("dog", "cat")
    assert trained[0][1]["labels"].tolist() == validated[0][1]["labels"].tolist() == [0, 1, 0]
    assert [str(one) for one in trained.defects] == ["a.json: repeated class ('dog' is category 1, 5): taken as one"]
    assert datasets.load(file, "all", classes=("cat", "cat")).classes == ("cat",)


def test_corners_in_bbox_are_read_as_corners_and_told(tmp_path):
    corners = [(10, 5, 50, 30), (1, 1, 20, 20), (30, 20, 60, 40)]
    ds = datasets.load(coco(tmp_path / "a.json", [entry(id, bbox=box) for id, box in enumerate(corners)]), "all")
    assert [str(one) for one in ds.defects] == [
        "a: corners in bbox (1 of 3 boxes leave their image as x, y, w, h, none as x1, y1, x2, y2): read as corners"
    ]
    assert ds[0][1]["boxes"].tolist() == [list(box) for box in corners]
    corners[0] = (10, 5, 5, 30)  # a width that no corner can be
    ds = datasets.load(coco(tmp_path / "a.json", [entry(id, bbox=box) for id, box in enumerate(corners)]), "all")
    assert kinds(ds.defects) == ["partly outside"]


@pytest.mark.parametrize(
    ("area", "told"),
    [
        *((400, False), (123.5, False), (None, False), (430, False), (1, False)),
        *((0, True), (-5, True), ("large", True), (float("nan"), True), (0.1667, True), (2400, True), (10**400, True)),
    ],
)
def test_an_area_that_the_box_cannot_have_is_told_and_replaced(tmp_path, area, told):
    ds = datasets.load(coco(tmp_path / "a.json", [entry(area=area)]), "all")  # 20 x 20 in 60 x 40
    assert kinds(ds.defects) == ["area mismatch"] * told
    assert ds[0][1]["area"].tolist() == [400 if told or area is None else area]


CORNER = dict(size=[HEIGHT, WIDTH], counts=[405, *[20, 20] * 9, 20, 1615])  # the left half of the box


@pytest.mark.parametrize(
    ("segmentation", "area", "own"),
    [
        *((polygon(10, 5, 30, 25), 400, 400), (polygon(10, 5, 30, 25), 380, 380), ([[10, 5, 30, 5, 10, 25]], 200, 200)),
        *(([[10, 5, 30, 5, 10, 25]], 400, 200), (polygon(10, 5, 30, 25), 100, 400), (CORNER, 400, 200)),
        *((CORNER, 200, 200), ([[10, 5, 20, 5, 20, 25, 10, 25], [20, 5, 30, 5, 30, 25, 20, 25]], 400, 400)),
    ],
)
def test_an_area_that_is_not_of_the_mask_is_told_and_replaced(tmp_path, segmentation, area, own):
    """A polygon of all or half of a box of 20 x 20, and runs of half of it; w·h is no area of a triangle."""
    item = entry(bbox=(10, 5, 20, 20), area=area, segmentation=segmentation)
    ds = datasets.load(coco(tmp_path / "a.json", [item]), "all")
    told = [one for one in ds.defects if one.kind != "mask apart"]
    assert kinds(told) == ["area not of the mask"] * (own != area)
    assert ds[0][1]["area"].tolist() == [own]


@pytest.mark.parametrize("segmentation", [polygon(40, 5, 58, 25), dict(size=[HEIGHT, WIDTH], counts=[2000, 30, 370])])
def test_a_mask_apart_from_its_box_is_told(tmp_path, segmentation):
    ds = datasets.load(coco(tmp_path / "a.json", [entry(segmentation=segmentation)]), "all")
    assert kinds(ds.defects) == ["mask apart"]
    near = datasets.load(coco(tmp_path / "a.json", [entry(segmentation=polygon(11, 6, 28, 23))]), "all")
    assert near.defects == []


def test_a_set_without_an_object_is_refused_and_normalised_boxes_are_none(tmp_path):
    shares = (0.2, 0.3, 0.5, 0.6), (0.7, 0.8, 0.95, 1)  # the second one as two corners
    normalised = [entry(id, bbox=box) for id, box in enumerate(shares)]
    for annotations, kind in (([], []), (normalised, ["normalised box"] * 2)):
        with pytest.raises(Unreadable, match="no object of split 'all' can be used") as error:
            datasets.load(coco(tmp_path / "a.json", annotations), "all")
        assert kinds(error.value.defects) == [*kind, "no object"]
        assert not kind or "multiply shares of the image by its width and height)" in str(error.value)


@pytest.mark.parametrize("lies", ["photos/a.jpg", "images/train/a.jpg", "A.JPG", "a.png", "train/deep/a.jpeg"])
def test_a_missing_image_is_told_with_the_file_that_lies_beside(tmp_path, lies):
    more = [dict(id=8, file_name="a.jpg", width=WIDTH, height=HEIGHT)]
    file = coco(tmp_path / "set" / "a.json", [entry()], more)
    picture(file.parent / lies)
    (told,) = datasets.load(file, "all").defects
    assert (told.kind, told.object) == ("missing image", "image 8")
    assert told.detail.startswith("('a.jpg' is not in ")
    assert told.detail.endswith(f"{tmp_path / 'set'}, {tmp_path}; there is {lies!r})")


@pytest.mark.parametrize("folder", ["data", "JPEGImages", "imgs"])
def test_images_in_the_folders_of_other_tools_are_found(tmp_path, folder):
    file = coco(tmp_path / "labels.json", [entry()])
    (tmp_path / folder).mkdir()
    (tmp_path / "seven.jpg").rename(tmp_path / folder / "seven.jpg")
    assert datasets.load(tmp_path, "labels").defects == datasets.load(file, "all").defects == []


def test_images_of_one_name_in_two_splits_are_those_of_the_split(tmp_path):
    for split, shade in (("train", 10), ("val", 200)):
        coco(tmp_path / "annotations" / f"{split}.json", [entry()])
        for folder in (tmp_path / "images" / split, tmp_path / "images"):
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (WIDTH, HEIGHT), (shade,) * 3).save(folder / "seven.jpg")
    (tmp_path / "annotations" / "seven.jpg").unlink()
    assert [int(datasets.load(tmp_path, split)[0][0].max()) for split in ("train", "val")] == [10, 200]


def test_two_files_of_one_split_are_both_there(tmp_path):
    for place in ("annotations", "."):
        coco(tmp_path / place / "train.json", [entry()])
    assert datasets.splits(tmp_path) == ["train", "train.json"]
