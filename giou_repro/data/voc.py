"""Pascal VOC folders: their splits, and the annotations of their XML files. `datasets.load` opens them.

A year is a folder with Annotations/<id>.xml, JPEGImages/<id>.jpg (.jpeg, .png) and ImageSets/Main/<split>.txt;
annotations/ and images/, or all in one folder, as other tools leave them, will do, and so will a folder of several
years.
"""

import math
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path

from giou_repro.data.annotations import (
    Object,
    Picture,
    number,
    read_text,
    similar_classes,
    within,
)
from giou_repro.data.defects import Defect, Unreadable
from giou_repro.data.folder import Folder

LAYOUT = "Pascal VOC annotations (Annotations/*.xml)"
CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car"),
    *("cat", "chair", "cow", "diningtable", "dog", "horse", "motorbike"),
    *("person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
XML_FOLDERS = ("Annotations", "annotations", "annots", ".")
IMAGE_FOLDERS = ("JPEGImages", "images", "Images", ".")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
CORNERS = ("xmin", "ymin", "xmax", "ymax")
LARGEST_XML = 4 * 2**20  # bytes


def sources(path: Path) -> dict:
    """split → its reader, `read` without the classes, "all" first; empty where `path` holds no XML files."""
    if path.is_file():
        return {}
    path = path / "VOCdevkit" if (path / "VOCdevkit").is_dir() else path
    folders = [path] if _xml_folder(path) else [folder for folder in sorted(path.iterdir()) if folder.is_dir()]
    years = [folder for folder in folders if _xml_folder(folder)]
    parts = defaultdict(list, {"all": [(year, None) for year in years]} if years else {})
    for year in years:
        lists = _lists(year)
        for file in lists:
            parts[file.stem].append((year, file))
        if year != path and not lists:
            parts[year.name] = [(year, None)]
    return {split: partial(read, years, part) for split, part in parts.items()}


def _xml_folder(folder):
    return next((folder / name for name in XML_FOLDERS if any((folder / name).glob("*.xml"))), None)


def _lists(year):
    """The lists of ids in ImageSets/Main, without those of one class (aeroplane_train beside train)."""
    files = sorted((year / "ImageSets" / "Main").glob("*.txt"))
    names = {file.stem for file in files}
    return [file for file in files if "_" not in file.stem or file.stem.rpartition("_")[2] not in names]


def read(years: list[Path], part: list[tuple], classes: tuple | None = None) -> Folder:
    """The annotations of a split.

    years: all folders;  part: the split's (folder, list of ids, or None for all there is);  classes: the names to take,
    or None for the VOC 20 where all names in all years are of them, and else those names in order, so that every split
    has the same.
    """
    parsed = {year: {file.stem: _parsed(file) for file in sorted(_xml_folder(year).glob("*.xml"))} for year in years}
    roots = [root for annotations in parsed.values() for root, _, _ in annotations.values() if root is not None]
    names = sorted(
        {name for root in roots for item in root.findall("object") if (name := item.findtext("name", "").strip())}
    )
    split = Folder(
        "+".join(dict.fromkeys(year.resolve().name for year, _ in part)),
        tuple(classes or (CLASSES if set(names) <= set(CLASSES) else names)),
        inclusive=True,
        defects=similar_classes(names, years[0].name),
    )
    for year, listing in part:
        images = _images(year)
        for id in _ids(year, listing, images, parsed[year], split.defects):
            _add_picture(split, id, parsed[year].get(id), images)
    return split


def _parsed(file):
    """(root element, text, defects) of an XML file; None for the root where it cannot be used.

    An XML that declares a document type or an entity, by which XML reads other files and grows without bound, never
    reaches the parser.
    """
    try:
        text, defects = read_text(file, "malformed annotation", LARGEST_XML)
        if re.search(r"<!\s*(DOCTYPE|ENTITY)", text, re.IGNORECASE):
            return None, text, [Defect("hostile XML", file.name, "(it declares a document type or an entity)")]
        root = ElementTree.fromstring(text.strip())
        if root.tag.lower() != "annotation":
            raise ValueError(f"it is a <{root.tag:.40}>, not an <annotation>")
        return root, text, defects
    except Unreadable as error:
        return None, "", error.defects
    except (ElementTree.ParseError, ValueError) as error:
        return None, text, [Defect("malformed annotation", file.name, f"({error})")]


def _images(year):
    """id → the image files of that name, from the first folder that has any."""
    images = defaultdict(list)
    for folder in (*(year / name for name in IMAGE_FOLDERS), _xml_folder(year)):
        if not images and folder.is_dir():
            for file in sorted(folder.iterdir()):
                if file.suffix.lower() in SUFFIXES and file.is_file():
                    images[file.stem].append(file)
    return images


def _ids(year, listing, images, parsed, defects):
    """The ids of a list, each once; without a list those of all annotations, images and lists of the year."""
    if listing is None:
        return sorted({id for file in _lists(year) for id in _lines(file, [])} | set(images) | set(parsed))
    ids = Counter(_lines(listing, defects))
    defects += [Defect("listed twice", listing.name, object=id) for id, count in ids.items() if count > 1]
    return ids


def _lines(listing, defects):
    try:
        text, encoding = read_text(listing, "empty list")
    except Unreadable as error:
        defects += error.defects
        return []
    defects += encoding
    lines = (line.strip() for line in text.splitlines())
    return [line.rpartition(".")[0] if line.lower().endswith(SUFFIXES) else line for line in lines if line]


def _add_picture(split, id, parsed, images):
    """Add the picture of an id to the annotations of a split, or the defects for which it is skipped."""
    root, text, defects = parsed or (None, "", [Defect("missing annotation", f"{id}.xml")])
    split.defects += defects
    file = None if root is None else _image(id, root.findtext("filename", "").strip(), images, split.defects)
    if file:
        split.content.update(text.encode(errors="replace"))
        size = number(root.findtext("size/width")), number(root.findtext("size/height"))
        objects = _objects(root, split.classes, file.name, split.defects)
        split.pictures.append(Picture(file, file.name, None, size, objects))


def _image(id, filename, images, defects):
    """The image of an id, or None: by the id, as VOC means it, or else by the name that the XML gives."""
    by_id = images.get(id, [])
    if filename and not within(Path(), filename):
        kind = "misleading filename" if by_id else "path out of the folder"
        defects.append(Defect(kind, f"{id}.xml", f"({filename!r})"))
        return by_id[0] if by_id else None
    by_name = [file for file in images.get(filename.rpartition(".")[0], []) if file.name == filename]
    if not by_id and not by_name:
        defects.append(Defect("missing image", f"{id}.xml", f"({filename or id} is not there)"))
    return next(iter([file for file in by_id if file in by_name] + by_id + by_name), None)


def _objects(root, classes, file, defects):
    """The objects of an annotation, boxes as written."""
    objects = []
    for index, item in enumerate(root.findall("object"), 1):
        name, box = item.findtext("name", "").strip(), item.find("bndbox")
        title = f"object {index}{name and f' ({name})'}"
        missing = [tag for tag in CORNERS if box is None or box.find(tag) is None]
        if not name or missing:
            defects.append(Defect("missing tag", file, f"<{', '.join(missing) or 'name'}>", title))
        elif name not in classes:
            defects.append(Defect("unknown class", file, object=title))
        else:
            corners = tuple(number(box.findtext(tag)) for tag in CORNERS)
            if any(math.isfinite(value) and value != round(value) for value in corners):
                defects.append(Defect("fractional coordinate", file, f"{corners}", title))
            difficult = item.findtext("difficult", "").strip().lower() in ("1", "true")
            objects.append(Object(title, classes.index(name), corners, difficult))
    return objects
