"""Pascal VOC folders: their splits, and the annotations of their XML files. `datasets.load` opens them.

A year is a folder with Annotations/<id>.xml, JPEGImages/<id>.jpg (.jpeg, .png) and ImageSets/Main/<split>.txt;
annotations/ and images/, or all in one folder, as other tools leave them, will do, and so will a folder of several
years.
"""

import functools
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from pathlib import Path

from giou_repro.data.annotations import (
    IMAGES,
    Object,
    Picture,
    missing_files,
    number,
    read_text,
    similar_classes,
    utf8_name,
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
XML_FOLDERS = ("Annotations", "annotations", "annots", "labels", "xmls", ".")
IMAGE_FOLDERS = ("JPEGImages", "images", "Images", ".")
LIST_FOLDERS = ("ImageSets/Main", "ImageSets")
CORNERS = ("xmin", "ymin", "xmax", "ymax")
SINGLE = {"name", "bndbox", *CORNERS}  # tags that an object has once
READ = {"annotation", "filename", "size", "width", "height", "object", "difficult", *SINGLE}
LARGEST_XML = 4 * 2**20  # bytes


def sources(path: Path) -> dict:
    """split → its reader, from classes (or None) to a `Folder`, "all" first; empty where `path` holds no XML files."""
    years = _years(path)
    parts = defaultdict(list, {"all": [(year, None) for year in years]} if years else {})
    for year in years:
        folder = year.folder.resolve().name
        lists = {file.stem: file for file in year.lists} or ({} if year.folder == path else {folder: None})
        for name, listing in lists.items():
            parts[f"{folder}/all" if name == "all" else name].append((year, listing))
    return {split: functools.partial(_read, years, part) for split, part in parts.items()}


def files(path: Path) -> list[Path]:
    """All annotations, lists and images."""
    parts = ((year.annotations, year.lists, *year.images.values()) for year in _years(path))
    return [file for files in parts for some in files for file in some]


def _years(path):
    path = path / "VOCdevkit" if (path / "VOCdevkit").is_dir() else path
    if path.is_file() or _files(path, XML_FOLDERS, [".xml"]):
        return [] if path.is_file() else [Year(path)]
    return [Year(folder) for folder in sorted(path.iterdir()) if _files(folder, XML_FOLDERS, [".xml"])]


def _files(folder, names, suffixes):
    """The files with these suffixes in the first of the folders that has any, hidden ones left out."""
    for place in (folder / name for name in names):
        files = sorted(place.iterdir()) if place.is_dir() else ()
        if found := [file for file in files if file.suffix.lower() in suffixes and file.name[0] != "."]:
            return found
    return []


class Year:
    """The files of one year; its annotations are parsed once, by whichever split needs them first."""

    def __init__(self, folder):
        self.folder, self.annotations = folder, _files(folder, XML_FOLDERS, [".xml"])
        lists = _files(folder, LIST_FOLDERS, [".txt"])
        names = {file.stem for file in lists}  # without those of one class: aeroplane_train beside train
        self.lists = [file for file in lists if "_" not in file.stem or file.stem.rpartition("_")[2] not in names]
        self.images = defaultdict(list)  # id → files
        for file in _files(folder, (*IMAGE_FOLDERS, self.annotations[0].parent.name), IMAGES):
            if file.is_file():
                self.images[_stem(utf8_name(file))].append(file)

    @functools.cached_property
    def parsed(self):
        """id → (root element or None, text, defects)."""
        return {_stem(utf8_name(file)): _parsed(file) for file in self.annotations}

    @functools.cached_property
    def owners(self):
        """id of an image → the id of an annotation that has no image of its own name, but names this one."""
        unnamed = [(id, root) for id, (root, _, _) in self.parsed.items() if root is not None and id not in self.images]
        return {_stem(_text(root, "filename")): id for id, root in unnamed}

    def ids(self, listing, defects):
        """The ids of a list, each once; without a list those of all annotations, images and lists."""
        if listing is None:
            named = {id for file in self.lists for id in self.ids(file, defects)}
            return sorted(named | set(self.parsed) | {self._owner(id) for id in self.images})
        lines = _lines(listing, defects)
        known = {*self.parsed, *self.images}
        lines = [line if line in known else re.sub(r"\s+(-1|0|1)$", "", line) for line in lines]  # a class's list
        ids = Counter(map(self._owner, lines))
        defects += [Defect("listed twice", listing.name, object=id) for id, count in ids.items() if count > 1]
        return ids

    def _owner(self, id):
        return id if id in self.parsed else self.owners.get(id, id)

    def image(self, id, filename, defects, missing):
        """The image of an id, or None: by the id, as VOC means it, or else by the name that the XML gives."""
        by_id, own = self.images.get(id, []), _stem(re.split(r"[\\/]", filename)[-1]) == id
        outside = filename and not own and not within(Path(), filename)
        by_name = [file for file in self.images.get(_stem(filename), []) if utf8_name(file) == filename]
        kinds = {
            "path out of the folder": outside and not by_id,
            "misleading filename": by_id and (outside or (by_name and by_name[0] not in by_id)),
            "several images": len(by_id) > 1 and not by_name,
            "annotated twice": not by_id and by_name and self._owner(_stem(filename)) != id,
        }
        defects += [Defect(kind, f"{id}.xml", f"({filename!r})") for kind, applies in kinds.items() if applies]
        missing += [] if by_id or by_name or outside else [(f"{id}.xml", "", filename or id)]
        candidates = [file for file in by_name if file in by_id] or by_id or by_name
        return candidates[0] if candidates and not kinds["annotated twice"] else None


def _stem(name):
    return name.rpartition(".")[0] or name


def _text(element, tag):
    return element.findtext(tag, "").strip()


def _lines(listing, defects):
    try:
        text, encoding = read_text(listing, "empty list")
    except Unreadable as error:
        defects += error.defects
        return []
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    defects += encoding if lines else [Defect("empty list", listing.name)]
    return [_stem(line) if line.lower().endswith((*IMAGES, ".xml")) else line for line in lines]


def _parsed(file):
    """(root element, text, defects) of an XML file, tags in lower case; None for the root where it cannot be used.

    An XML that declares a document type or an entity, by which XML reads other files and grows without bound, never
    reaches the parser.
    """
    name, text, other = utf8_name(file), "", {}
    try:
        text, defects = read_text(file, "malformed annotation", LARGEST_XML)
        if re.search(r"<!\s*(DOCTYPE|ENTITY)", text, re.IGNORECASE):
            return None, text, [Defect("hostile XML", name, "(it declares a document type or an entity)")]
        root = ElementTree.fromstring(text.strip())
        for element in root.iter() if re.search(r"<\w*[A-Z]|xmlns", text) else ():
            tag = element.tag.rpartition("}")[2]
            element.tag = tag.lower()
            if element.tag != tag and element.tag in READ:
                other[tag] = Defect("tag in another case", name, f"(<{tag}>)")
        if root.tag != "annotation":
            raise ValueError(f"it is a <{root.tag:.40}>, not an <annotation>")
        return root, text, [*defects, *other.values()]
    except Unreadable as error:
        return None, text, error.defects
    except (ElementTree.ParseError, ValueError) as error:
        return None, text, [Defect("malformed annotation", name, f"({error})")]


def _read(years: list[Year], part: list[tuple], classes: tuple | None = None, background: bool = False) -> Folder:
    """The annotations of a split.

    years: all years;  part: the split's (year, list of ids, or None for all there is);  classes: the names to take, or
    None for the VOC 20 where all names in all years are of them, and else those names in order, so that every split has
    the same;  background: whether an image without an XML has no objects.
    """
    roots = [root for year in years for root, _, _ in year.parsed.values() if root is not None]
    names = sorted({name for root in roots for item in root.iter("object") if (name := _text(item, "name"))})
    split = Folder(
        "+".join(dict.fromkeys(year.folder.resolve().name for year, _ in part)),
        tuple(classes or (CLASSES if set(names) <= set(CLASSES) else names)),
        unit="inclusive",
        defects=similar_classes(names, years[0].folder.name),
    )
    empty = ElementTree.Element("annotation") if background else None
    for year, listing in part:
        unannotated, missing = [], []
        for id in year.ids(listing, split.defects):
            root, text, defects = year.parsed.get(id, (empty, "", []))
            split.defects += defects
            unannotated += [] if id in year.parsed or background else [(f"{id}.xml", "", f"{id}.xml")]
            file = None if root is None else year.image(id, _text(root, "filename"), split.defects, missing)
            if file:
                split.content.update(text.encode(errors="replace"))
                size, name = [number(root.findtext(f"size/{side}")) for side in ("width", "height")], utf8_name(file)
                objects = _objects(root, split.classes, name, split.defects)
                split.pictures.append(Picture(file, name, None, None if root is empty else tuple(size), objects))
        split.defects += missing_files("missing annotation", year.folder, XML_FOLDERS, unannotated)
        split.defects += missing_files("missing image", year.folder, IMAGE_FOLDERS, missing)
    return split


def _objects(root, classes, file, defects):
    """The objects of an annotation, boxes as written."""
    objects = []
    for index, item in enumerate(root.iter("object"), 1):
        name, box = _text(item, "name"), item.find("bndbox")
        title = f"object {index}{name and f' ({name})'}"
        tags = Counter(element.tag for element in (*item, *(() if box is None else box)) if element.tag in SINGLE)
        missing = [tag for tag in CORNERS if tag not in tags]
        repeated = [f"<{tag}> {count} times" for tag, count in tags.items() if count > 1]
        defects += [Defect("repeated tag", file, f"({', '.join(repeated)})", title)] if repeated else []
        if not name or missing:
            defects.append(Defect("missing tag", file, f"<{', '.join(missing) or 'name'}>", title))
        elif name not in classes:
            defects.append(Defect("unknown class", file, object=title))
        else:
            corners = tuple(number(box.findtext(tag)) for tag in CORNERS)
            flag = _text(item, "difficult").lower()
            objects.append(Object(title, classes.index(name), corners, flag in ("true", "yes") or number(flag) > 0))
    return objects
