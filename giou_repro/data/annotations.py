"""What the readers of Pascal VOC and COCO share: annotated images and objects, and text, numbers and paths from files
that others wrote."""

import hashlib
import math
import os
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from giou_repro.data.defects import Defect, Unreadable

LARGEST_FILE = 2**31  # bytes


class Object(NamedTuple):
    """One annotated object: its title in reports, its class, its xyxy box (as annotated until `repair_objects`), flags.

    area: COCO's own, or None;  segmentation: see `masks.checked_segmentation`, or None.
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
    """One image file with its annotations.

    name: in reports;  stated: the annotated size (width, height), or None. Set when its header is read: width, height,
    `turned`, whether EXIF's orientation is followed, and `state`, the file's size, time and place on the disk.
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


@dataclass
class Annotations:
    """The annotations of a split: the data set's name, its classes, pictures, defects so far and sha256 so far.

    inclusive: whether boxes are Pascal VOC's integers; see `defects.repair_objects`.
    """

    name: str
    classes: tuple
    pictures: list = field(default_factory=list)
    defects: list = field(default_factory=list)
    content: Any = field(default_factory=hashlib.sha256)
    inclusive: bool = False


def stated_size(width: Any, height: Any) -> tuple[float, float] | None:
    """(width, height) as annotated; None where there is none, or zeros, as some tools write."""
    size = (number(width), number(height))
    return size if all(0 < value < math.inf for value in size) else None


def similar_classes(names: Any, file: str) -> list[Defect]:
    """Defects of class names that differ in case, spaces or hyphens alone."""
    groups = defaultdict(list)
    for name in names:
        groups[re.sub(r"[\s_-]", "", name).lower()].append(name)
    return [
        Defect("similar classes", file, f"({', '.join(map(repr, group))})")
        for group in groups.values()
        if len(group) > 1
    ]


def number(value: Any) -> float:
    """A float of a number or its text; NaN, which `repair_objects` drops, for anything else."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def read_text(path: Path, kind: str, largest: int = LARGEST_FILE) -> tuple[str, list[Defect]]:
    """(the text of a file, defects): UTF-8 or, by its mark, UTF-16; else the encoding that an XML declares, or Latin-1.

    Raises Unreadable with a defect of `kind` where the file is empty, above `largest` bytes, or cannot be read.
    """
    try:
        size = path.stat().st_size
        reason = f"{size} bytes, more than {largest}" if size > largest else "" if size else "empty file"
        content = b"" if reason else path.read_bytes()
    except OSError as error:
        reason = error.strerror
    if reason:
        raise Unreadable(Defect(kind, path.name, f"({reason})"))
    try:
        return content.decode("utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"), []
    except UnicodeDecodeError as error:
        encodings = rb"gb\w+|big5|shift_jis|euc-\w+|windows-\d+|iso-8859-\d+"
        declared = re.match(rb"\s*<\?xml[^>]*encoding=[\"'](" + encodings + rb")[\"']", content, re.IGNORECASE)
        if declared:
            return content.decode(declared[1].decode(), errors="replace"), []
        detail = f"({error.reason} at byte {error.start}: not UTF-8)"
        return content.decode("latin-1"), [Defect("encoding", path.name, detail)]


def within(folder: Path, name: str) -> Path | None:
    """The path that `name` gives in `folder`; None where the name leads out of it (links are the user's own)."""
    name = name.replace("\\", "/")
    parts = PurePosixPath(name).parts
    if not parts or "\0" in name or name.startswith("/") or ".." in parts or re.match(r"[A-Za-z]:", name):
        return None
    return folder.joinpath(*parts)
