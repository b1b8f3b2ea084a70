"""What the readers of Pascal VOC and COCO share: annotated images and objects, and text, numbers and paths from files
that others wrote."""

import contextlib
import math
import os
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from giou_repro.data.defects import Defect, Unreadable

UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


class Object(NamedTuple):
    """One annotated object: its title in reports, its class, its xyxy box (as annotated until `repair_objects`), flags.

    area: COCO's own, or NaN;  segmentation: see `masks.checked_segmentation`, or None.
    """

    title: str
    label: int
    box: tuple
    difficult: bool = False
    crowd: bool = False
    area: float = math.nan
    segmentation: list | dict | None = None


@dataclass
class Picture:
    """One image file with its annotations.

    name: in reports;  stated: the annotated width and height, NaN or 0 where there is none. Set when the header is
    read: width, height, `turned`, whether EXIF's orientation is followed, and `state`, the file's size and time.
    """

    file: Path
    name: str
    id: int | None
    stated: tuple
    objects: list
    width: int = 0
    height: int = 0
    turned: bool = False
    state: os.stat_result | None = None


def similar_classes(names: list[str], file: str) -> list[Defect]:
    """Defects of class names that differ in case, spaces or hyphens alone."""
    groups = defaultdict(list)
    for name in names:
        groups[re.sub(r"[\s_-]", "", name).lower()].append(name)
    return [
        Defect("similar classes", file, f"({', '.join(map(repr, group))})")
        for group in groups.values()
        if len(group) > 1
    ]


def number(value: object) -> float:
    """A float of a number or its text; NaN, which `repair_objects` drops, for anything else."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def read_text(path: Path, kind: str, largest: float = math.inf) -> tuple[str, list[Defect]]:
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
    declared = re.findall(r"<\?xml[^>]*encoding=[\"']([\w-]+)", content[:200].decode("latin-1"))
    for encoding in ("utf-16" if content.startswith(UTF16_MARKS) else "utf-8-sig", *declared):
        with contextlib.suppress(UnicodeError, LookupError):
            return content.decode(encoding), []
    return content.decode("latin-1"), [Defect("encoding", path.name, "(not UTF-8)")]


def within(folder: Path, name: str) -> Path | None:
    """The path that `name` gives in `folder`; None where the name leads out of it (links are the user's own)."""
    path = PurePosixPath(name.replace("\\", "/"))
    if not path.parts or path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:", name):
        return None
    return folder / path
