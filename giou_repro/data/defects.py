"""What can be wrong with annotated images, and what is done about each: the kinds of `ACTIONS`, found without decoding
a picture.

`clean` repairs the objects of one image, `header` measures an image file, `parse_xml` and `parse_json` read annotations
from strangers.
"""

import json
import math
import os
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from giou_repro import boxes

ACTIONS = {
    # of one object
    "not a number": "dropped",
    "missing tag": "dropped",
    "malformed entry": "dropped",
    "unknown class": "dropped",
    "unknown image": "dropped",
    "inverted corners": "sorted",
    "zero area": "dropped",
    "wholly outside": "dropped",
    "partly outside": "clipped",
    "duplicate": "dropped",
    "near-duplicate": "kept",
    "fractional coordinate": "kept",
    "repeated id": "kept",
    "missing mask": "its box is the mask",
    "malformed mask": "its box is the mask",
    # of one image
    "missing image": "image skipped",
    "missing annotation": "image skipped",
    "unreadable image": "image skipped",
    "malformed annotation": "image skipped",
    "hostile XML": "image skipped",
    "path out of the folder": "image skipped",
    "unnamed image": "image skipped",
    "misleading filename": "found by its id",
    "listed twice": "taken once",
    "missing size": "size of the image used",
    "size mismatch": "size of the image used",
    "turned by EXIF": "turned, as annotated",
    "EXIF not followed": "left as stored",
    "not RGB": "converted",
    # of the set
    "encoding": "read as Latin-1",
    "similar classes": "kept apart",
    "repeated category": "first one kept",
    "empty list": "not opened",
    "malformed JSON": "not opened",
}

FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "BMP",
    "GIF",
    "TIFF",
)  # by content, whatever the file's suffix; none that runs another program
SAME = 0.9  # IoU above which two boxes of a class are near-duplicates
ROUNDING = 0.01  # px out of the image that are clipped without a word
XML_BYTES = 4 * 2**20
JSON_BYTES = 2 * 2**30


@dataclass(frozen=True)
class Defect:
    """One thing wrong in a data set: the file, the object in it ("" for the file as a whole), a kind of `ACTIONS`, what
    is done, and details."""

    file: str
    object: str
    kind: str
    action: str
    detail: str

    def __str__(self):
        return f"{self.file}{self.object and ', '}{self.object}: {self.kind}{self.detail and ' '}{self.detail}: {self.action}"


def defect(kind, file, detail="", object=""):
    """The `Defect` of a kind, with the action that goes with it. What cannot be printed of a file's own words is
    escaped."""
    file, detail, object = (str(text).encode(errors="backslashreplace").decode() for text in (file, detail, object))
    return Defect(str(file), object, kind, ACTIONS[kind], detail)


class Unreadable(ValueError):
    """A file, or a whole set, cannot be used; `defects` says why, after what there is to say `about` the whole."""

    def __init__(self, *defects, about=""):
        super().__init__(*defects)
        self.defects, self.about = list(defects), about

    def __str__(self):
        return self.about + summary(self.defects)


def summary(defects):
    """A short text: how many defects of each kind, what is done with them, and the first one of each kind."""
    if not defects:
        return "no defects"
    if len(defects) == 1:
        return str(defects[0])
    first = {}
    for one in defects:
        first.setdefault((one.kind, one.action), one)
    counts = Counter((one.kind, one.action) for one in defects)
    lines = [f"{len(defects)} defects"]
    for (kind, action), count in counts.most_common():
        example = first[kind, action]
        where = f"{example.file}{example.object and ', '}{example.object}{example.detail and ' '}{example.detail}"
        lines.append(f"  {count} {kind}: {action}; {'first: ' if count > 1 else ''}{where}")
    return "\n".join(lines)


class Object(NamedTuple):
    """One annotated object: what a report calls it, its class, its xyxy box, as annotated until `clean` has seen it,
    and its flags.

    area: COCO's own, None where it has none;  segmentation: see `checked_segmentation`, None where it has none.
    """

    title: str
    label: int
    box: tuple
    difficult: bool = False
    crowd: bool = False
    area: float | None = None
    segmentation: list | dict | None = None


@dataclass
class Picture:
    """One image file with what is annotated on it.

    name: what a report calls it;  stated: the size (width, height) that its annotation gives, None where it gives none;
     width, height and `turned`, whether EXIF's orientation is followed, and `state`, its file's size, time and place on
     the disk, are known once `datasets` has
    read its header.
    """

    file: Path
    name: str
    id: int | None
    stated: tuple | None
    objects: list
    width: int = 0
    height: int = 0
    turned: bool = False
    state: os.stat_result | None = None


def clean(objects, width, height, file, inclusive=False):
    """The objects of an image of this size that can be used, each within it in continuous pixels, and the defects of
    all.

    `inclusive` where boxes come as Pascal VOC's integers: pixels counted from 1, the last one part of the box, so that
    (1, 1, w, h) is all of an image. They become continuous here: (xmin − 1, ymin − 1, xmax, ymax). A box with xmin =
    xmax has no area, as its maker saw it.
    """
    kept, defects, seen = [], [], {}
    for item in objects:
        box, kinds = _repaired(item.box, width, height, inclusive)
        defects += [defect(kind, file, _text(item.box), item.title) for kind in kinds]
        if box is None:
            continue
        key = (item.label, item.crowd, *box)
        if key in seen:
            defects.append(defect("duplicate", file, f"of {seen[key]}", item.title))
            continue
        seen[key] = item.title
        kept.append(item._replace(box=box))
    return kept, defects + _near_duplicates(kept, file)


def _repaired(box, width, height, inclusive):
    """(the box within the image, or None where nothing of it is left; the kinds of its defects)."""
    with np.errstate(over="ignore"):
        x1, y1, x2, y2 = (float(value) for value in np.float32(box))  # as the tensors hold it
    if not all(map(math.isfinite, (x1, y1, x2, y2))):
        return None, ["not a number"]
    kinds = ["inverted corners"] if x2 < x1 or y2 < y1 else []
    x1, y1, x2, y2 = min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
    if x1 == x2 or y1 == y2:
        return None, [*kinds, "zero area"]
    if inclusive:
        x1, y1 = x1 - 1, y1 - 1
    if x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
        return None, [*kinds, "wholly outside"]
    if min(x1, y1) < -ROUNDING or x2 > width + ROUNDING or y2 > height + ROUNDING:
        kinds.append("partly outside")
    return (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))), kinds


def _text(box):
    return f"({', '.join(f'{value:.10g}' for value in box)})"


def _near_duplicates(objects, file):
    """Objects that are almost the same box as an earlier one of their class; crowds are regions, not objects, and left
    out."""
    single = [item for item in objects if not item.crowd]
    if len({item.label for item in single}) == len(single):
        return []
    box = torch.tensor([item.box for item in single])
    label = torch.tensor([item.label for item in single])
    found = []
    for start in range(0, len(single), 512):  # rows at a time: an image may have thousands of boxes
        rows = slice(start, start + 512)
        overlap = boxes.iou(box[rows, None], box[None])
        same = ((overlap > SAME) & (label[rows, None] == label)).tril(start - 1)
        for row in same.any(1).nonzero().flatten().tolist():
            first = int(same[row].int().argmax())
            found.append(
                defect(
                    "near-duplicate",
                    file,
                    f"of {single[first].title}, IoU {overlap[row, first]:.3f}",
                    single[start + row].title,
                )
            )
    return found


def stated_size(width, height):
    """(width, height) as an annotation gives it; None where it has none, or zeros, as some tools write."""
    size = (number(width), number(height))
    return size if all(0 < value < math.inf for value in size) else None


def similar_classes(names, file):
    """Defects of class names that differ in case, spaces or hyphens alone."""
    alike = defaultdict(list)
    for name in names:
        alike[re.sub(r"[\s_-]", "", name).lower()].append(name)
    return [
        defect("similar classes", file, f"({', '.join(map(repr, group))})")
        for group in alike.values()
        if len(group) > 1
    ]


def number(value):
    """A float of a number or its text; NaN, which `clean` drops, for anything else."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


# ---------------------------------------------------------------- pictures


class Header(NamedTuple):
    """What an image file says of itself: its stored size in pixels, its colour mode, and EXIF's orientation, 1 where it
    has none."""

    width: int
    height: int
    mode: str
    orientation: int


def header(path):
    """The `Header` of an image file, read without decoding it unless its end is missing. Raises Unreadable."""
    try:
        with _opened(path) as image:
            measured = Header(*image.size, image.mode, _orientation(image))
            if image.format == "PNG":
                image.verify()  # the checksums of its chunks
            elif image.format not in ("JPEG", "MPO") or not _ends(path):
                image.load()
        return measured
    except Exception as error:  # a broken file can raise anything in its decoder
        raise _unreadable(path, error) from None


def decode(path, turn):
    """The picture as uint8 RGB (H, W, 3), turned as EXIF says where `turn`. Raises Unreadable."""
    try:
        with _opened(path) as image:
            if turn:
                image = image.transpose(TURNS[_orientation(image)])
            return np.array(_rgb(image))
    except Exception as error:
        raise _unreadable(path, error) from None


TURNS = {
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _opened(path):
    if os.path.getsize(path) == 0:
        raise ValueError("empty file")
    image = Image.open(path, formats=FORMATS)
    if image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"{image.width}x{image.height} pixels, more than {Image.MAX_IMAGE_PIXELS}")
    return image


def _ends(path):
    """Whether the mark that ends a JPEG is near its end, which a file cut short lacks."""
    with open(path, "rb") as file:
        file.seek(-min(64, os.path.getsize(path)), os.SEEK_END)
        return b"\xff\xd9" in file.read()


def _orientation(image):
    if "exif" not in image.info:
        return 1
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:  # broken EXIF of a sound picture
        return 1
    return value if value in range(1, 9) else 1


def _rgb(image):
    if image.mode[0] in "IF":  # 16 or 32 bits of grey
        grey = np.asarray(image, dtype=np.float32)
        image = Image.fromarray((grey / (256 if grey.max() > 255 else 1)).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


def _unreadable(path, error):
    reason = str(error).replace(f" {str(path)!r}", "") or type(error).__name__
    return Unreadable(defect("unreadable image", path.name, f"({reason})"))


# ---------------------------------------------------------------- annotations from strangers


def parse_xml(path):
    """(root element, text of the file, defects) of a VOC annotation.

    Raises Unreadable where it is too large, not well-formed, not an <annotation>, or declares a document type or an
    entity, by which XML reads other files and grows without bound; the parser never sees such a file.
    """
    text, defects = read_text(path, XML_BYTES, "malformed annotation")
    if re.search(r"<!\s*(DOCTYPE|ENTITY)", text, re.IGNORECASE):
        raise Unreadable(defect("hostile XML", path.name, "(it declares a document type or an entity)"))
    try:
        root = ElementTree.fromstring(text.strip())
    except (ElementTree.ParseError, ValueError) as error:
        raise Unreadable(defect("malformed annotation", path.name, f"({error})")) from None
    if root.tag.lower() != "annotation":
        raise Unreadable(defect("malformed annotation", path.name, f"(it is a <{root.tag:.40}>, not an <annotation>)"))
    return root, text, defects


def parse_json(path):
    """(content, text of the file, defects) of a COCO annotation; Unreadable where it is not a JSON object with images
    and annotations."""
    text, defects = read_text(path, JSON_BYTES, "malformed JSON")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unreadable(defect("malformed JSON", path.name, f"({error})")) from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise Unreadable(defect("malformed JSON", path.name, f'(it has no list "{key}")'))
    return content, text, defects


def read_text(path, largest, kind):
    """(the text of a file, defects): UTF-8 or, by its mark, UTF-16; the encoding that an XML declares; at the last,
    Latin-1.

    Raises Unreadable with a defect of `kind` where the file is empty, above `largest` bytes, or not to be read.
    """
    try:
        size = path.stat().st_size
        content = path.read_bytes() if 0 < size <= largest else b""
    except OSError as error:
        raise Unreadable(defect(kind, path.name, f"({error.strerror})")) from None
    if not content:
        raise Unreadable(defect(kind, path.name, f"({size} bytes, more than {largest})" if size else "(empty file)"))
    try:
        if content.startswith((b"\xff\xfe", b"\xfe\xff")):
            return content.decode("utf-16"), []
        return content.decode("utf-8-sig"), []
    except UnicodeDecodeError as error:
        declared = re.match(
            rb"""\s*<\?xml[^>]*encoding=["'](gb\w+|big5|shift_jis|euc-\w+|windows-\d+|iso-8859-\d+)["']""",
            content,
            re.IGNORECASE,
        )
        if declared:
            return content.decode(declared[1].decode(), errors="replace"), []
        return content.decode("latin-1"), [
            defect("encoding", path.name, f"({error.reason} at byte {error.start}: not UTF-8)")
        ]


def within(folder, name):
    """The path that `name` gives inside `folder`; None where it leads out of it, by its words alone (links are the
    user's own)."""
    name = name.replace("\\", "/")
    parts = PurePosixPath(name).parts
    if not parts or "\0" in name or name.startswith("/") or ".." in parts or re.match(r"[A-Za-z]:", name):
        return None
    return folder.joinpath(*parts)


# ---------------------------------------------------------------- masks


def checked_segmentation(segmentation, width, height):
    """COCO's segmentation as `mask` takes it: a list of polygons, arrays (2k,) of x, y in turn, or a compressed
    run-length dict.

    None where there is none. Raises ValueError with the reason where it cannot be drawn.
    """
    if not segmentation:
        return None
    if isinstance(segmentation, dict):
        return _checked_runs(segmentation, width, height)
    if not isinstance(segmentation, list):
        raise ValueError(f"neither polygons nor runs, but {type(segmentation).__name__}")
    polygons = []
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError("a polygon is not a list of three or more x, y pairs")
        points = np.array([number(value) for value in polygon])
        if not np.isfinite(points).all():
            raise ValueError("a polygon's coordinate is not a number")
        polygons.append(points.clip(-max(width, height), 2 * max(width, height)))
    return polygons


def _checked_runs(runs, width, height):
    mask = _mask_api()
    if runs.get("size") != [height, width]:
        raise ValueError(f"its runs are for size {runs.get('size')}, the image has {[height, width]}")
    counts = runs.get("counts")
    try:
        if isinstance(counts, list):
            if sum(counts) != height * width or min(counts) < 0:
                raise ValueError(f"its runs count {sum(counts)} pixels, the image has {height * width}")
            runs = mask.frPyObjects(dict(size=[height, width], counts=counts), height, width)
        else:
            runs = dict(size=[height, width], counts=counts.encode())
        mask.decode(runs)
    except (TypeError, AttributeError, UnicodeError, RuntimeError) as error:
        raise ValueError(f"its runs cannot be read: {error}") from None
    return runs


def mask(item, width, height):
    """The mask bool (H, W) of an `Object`; its box filled where it has no segmentation."""
    if item.segmentation is None:
        x1, y1, x2, y2 = item.box
        drawn = np.zeros((height, width), dtype=bool)
        drawn[math.floor(y1) : math.ceil(y2), math.floor(x1) : math.ceil(x2)] = True
        return drawn
    api = _mask_api()
    runs = item.segmentation
    if isinstance(runs, list):
        runs = api.merge(api.frPyObjects([polygon.tolist() for polygon in runs], height, width))
    return api.decode(runs).astype(bool)


def _mask_api():
    try:
        import faster_coco_eval.core.mask as api  # an extra: boxes need none
    except ImportError:
        raise ImportError("masks need faster-coco-eval: pip install 'giou-repro[detection]'") from None
    return api
