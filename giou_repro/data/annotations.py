"""What the readers share: annotated images and objects, and text, numbers, names and paths from files that others
wrote."""

import contextlib
import math
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from giou_repro.data.defects import Defect, Unreadable

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
MOST_FILES = 500_000  # looked at below a folder


class Object(NamedTuple):
    """One annotated object: its title in reports, its class, its xyxy box (as annotated until `repair_objects`), flags.

    area: COCO's own in px², or None where there is none;  segmentation: see `masks.checked_segmentation`, or None.
    """

    title: str
    label: int
    box: tuple
    difficult: bool = False
    crowd: bool = False
    area: float | None = None
    segmentation: list | dict | None = None


@dataclass(eq=False)
class Picture:
    """One image file with its annotations.

    name: in reports;  stated: the annotated width and height, NaN or 0 where there is none, None in a format that has
    none. Set when the set is opened:
    width, height, `turned`, whether EXIF's orientation is followed, `state`, the file's size and time, and, for a file
    of more than 8 bits, `levels`, see `pictures.decode`.
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
    levels: tuple | None = None


def similar_classes(names: list[str], file: str) -> list[Defect]:
    """Defects of class names that differ in case, spaces, hyphens or Unicode form alone."""
    groups = defaultdict(list)
    for name in names:
        groups[re.sub(r"[\s_-]", "", unicodedata.normalize("NFKC", name)).casefold()].append(name)
    alike = [", ".join(map(repr, group)) for group in groups.values() if len(group) > 1]
    return [Defect("similar classes", file, f"({names})") for names in alike]


def class_names(pairs: Iterable, file: str, defects: list[Defect]) -> dict:
    """id → name of (id, name) pairs, by id, without ids of two names; two ids of one name are one class."""
    names, ids = defaultdict(set), defaultdict(list)
    for id, name in pairs:
        names[id].add(name.strip())
    for id in sorted(names, key=lambda id: (isinstance(id, str), id)):
        if len(names[id]) > 1:
            defects.append(Defect("ambiguous category", file, f"({', '.join(sorted(names[id]))})", f"category {id}"))
        else:
            ids[names[id].pop()].append(id)
    for name, several in ids.items():
        if len(several) > 1:
            defects.append(Defect("repeated class", file, f"({name!r} is category {', '.join(map(str, several))})"))
    defects += similar_classes(ids, file)
    return {id: name for name, several in ids.items() for id in several}


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
        if not 0 < size <= largest:
            raise OSError(0, f"{size} bytes, more than {largest}" if size else "empty file")
        content = path.read_bytes()
    except OSError as error:
        raise Unreadable(Defect(kind, utf8_name(path), f"({error.strerror})")) from None
    declared = re.findall(r"<\?xml[^>]*encoding=[\"']([\w-]+)", content[:200].decode("latin-1"))
    for encoding in ("utf-16" if content.startswith(UTF16_MARKS) else "utf-8-sig", *declared):
        with contextlib.suppress(UnicodeError, LookupError):
            return content.decode(encoding), []
    return content.decode("latin-1"), [Defect("encoding", utf8_name(path), "(not UTF-8)")]


def utf8_name(path: Path) -> str:
    """The last name of a path read as UTF-8, which file names are, whatever the locale says."""
    return os.fsencode(path.name).decode(errors="surrogateescape")


def within(folder: Path, name: str) -> Path | None:
    """The path that `name` gives in `folder`; None where the name leads out of it (links are the user's own)."""
    path = PurePosixPath(os.fsdecode(name.replace("\\", "/").encode(errors="surrogatepass")))
    if not path.parts or path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:", name):
        return None
    return folder / path


def files_below(root: Path) -> list[Path]:
    """The files in a folder and its folders, links followed, each folder once; hidden ones and run folders left out."""
    files, seen = [], set()
    for folder, folders, names in os.walk(root, followlinks=True):
        known = os.path.realpath(folder) in seen or "run.json" in names or len(files) > MOST_FILES
        seen.add(os.path.realpath(folder))
        folders[:] = sorted(name for name in folders if not known and name[0] != ".")
        files += [Path(folder, name) for name in sorted(names) if not known and name[0] != "."]
    return files


def missing_files(kind: str, root: Path, looked: Iterable, missing: list[tuple]) -> Iterator[Defect]:
    """Defects of files that are not in the folders `looked` at, relative to `root` or not.

    missing: the defect's file and object, and the name, of each.
    They say where was looked and which file below `root` is near: in another folder, or of a name that differs in case,
    Unicode form or suffix.
    """
    looked = ", ".join(str(place) for place in looked if (root / place).is_dir())
    near, suffixes = defaultdict(list), IMAGES if kind == "missing image" else (".xml", ".txt")
    for path in files_below(root) if missing else ():
        if path.suffix.lower() in suffixes:
            near[_alike(utf8_name(path))].append(path.relative_to(root).as_posix())
    for file, title, name in missing:
        found = near[_alike(PurePosixPath(name.replace("\\", "/")).name)]
        beside = f"; there is {found[0]!r}" if found else ""
        yield Defect(kind, file, f"({name!r:.200} is not in {looked}{beside})", title)


def _alike(name):
    """What names have in common that differ in suffix, case or Unicode form alone."""
    return unicodedata.normalize("NFC", name.rpartition(".")[0] or name).casefold()
