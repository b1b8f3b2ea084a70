"""Pascal VOC folders: which splits they have, and what their XML files say. `datasets.load` opens them.

A year is a folder with Annotations/<id>.xml, JPEGImages/<id>.jpg (.jpeg, .png) and ImageSets/Main/<split>.txt;
annotations/ and images/, or all in one folder, as other tools leave them, will do, and so will a folder of several
years.
"""

import hashlib
import math
import os
from collections import defaultdict
from pathlib import Path

from giou_repro.data.defects import (
    Object,
    Picture,
    Unreadable,
    defect,
    number,
    parse_xml,
    read_text,
    similar_classes,
    stated_size,
    within,
)

CLASSES = (
    *(
        "aeroplane",
        "bicycle",
        "bird",
        "boat",
        "bottle",
        "bus",
        "car",
        "cat",
        "chair",
        "cow",
        "diningtable",
        "dog",
        "horse",
        "motorbike",
    ),
    *("person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
XML_FOLDERS = ("Annotations", "annotations", "annots", ".")
IMAGE_FOLDERS = ("JPEGImages", "images", "Images", ".")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
CORNERS = ("xmin", "ymin", "xmax", "ymax")
LIST_BYTES = 2**28


def sources(path):
    """split → [(folder of a year, its list of ids, None for all there is)], "all" first; empty where `path` holds no
    XML files."""
    path = path / "VOCdevkit" if (path / "VOCdevkit").is_dir() else path
    years = (
        [path]
        if _xml_folder(path)
        else [folder for folder in sorted(path.iterdir()) if folder.is_dir() and _xml_folder(folder)]
    )
    found = {"all": [(year, None) for year in years]} if years else {}
    for year in years:
        lists = _lists(year)
        for file in lists:
            found.setdefault(file.stem, []).append((year, file))
        if year != path and not lists:
            found[year.name] = [(year, None)]
    return found


def _xml_folder(folder):
    return next((folder / name for name in XML_FOLDERS if any((folder / name).glob("*.xml"))), None)


def _lists(year):
    """The lists of ids in ImageSets/Main, but not aeroplane_train beside train, which tells where one is to be seen."""
    files = sorted((year / "ImageSets" / "Main").glob("*.txt"))
    names = {file.stem for file in files}
    return [file for file in files if "_" not in file.stem or file.stem.rpartition("_")[2] not in names]


def read(years, source, classes=None):
    """What a split says: (name, classes, pictures, defects, sha256 of the annotations so far).

    years: `sources(path)["all"]`;  source: the split's own entry there;  classes: the names to take, or None for the
    VOC 20 where all names in all years are of them, and else those names in order, so that every split has the same.
    """
    annotations = {year: _annotations(year) for year, _ in years}
    found = sorted(
        {name for year in annotations.values() for annotation in year.values() for name in _names(annotation)}
    )
    classes = tuple(classes or (CLASSES if set(found) <= set(CLASSES) else found))
    defects, content, pictures = similar_classes(found, years[0][0].name), hashlib.sha256(), []
    for year, listing in source:
        images = _images(year)
        for id in _ids(year, listing, images, annotations[year], defects):
            picture = _picture(id, annotations[year].get(id), images, classes, defects, content)
            if picture:
                pictures.append(picture)
    return "+".join(dict.fromkeys(year.resolve().name for year, _ in source)), classes, pictures, defects, content


def _annotations(year):
    """id → (root, text, defects) of its XML, or the `Unreadable` that it raised."""
    annotations = {}
    for file in sorted(_xml_folder(year).glob("*.xml")):
        try:
            annotations[file.stem] = parse_xml(file)
        except Unreadable as error:
            annotations[file.stem] = error
    return annotations


def _names(annotation):
    if isinstance(annotation, Unreadable):
        return []
    return [name for item in annotation[0].findall("object") if (name := _words(item, "name"))]


def _words(element, tag):
    return (element.findtext(tag) or "").strip()


def _images(year):
    """id → the image files of that name, from the first folder that has any."""
    found = defaultdict(list)
    for folder in (*(year / name for name in IMAGE_FOLDERS), _xml_folder(year)):
        if not found and folder.is_dir():
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
                if entry.name.lower().endswith(SUFFIXES) and entry.is_file():
                    found[entry.name.rpartition(".")[0]].append(Path(entry.path))
    return found


def _ids(year, listing, images, annotations, defects):
    """The ids of a list, each once; without a list those of all annotations, images and lists of the year."""
    if listing is None:
        return sorted({id for file in _lists(year) for id in _lines(file, [])} | set(images) | set(annotations))
    ids = {}
    for id in _lines(listing, defects):
        if id in ids:
            defects.append(defect("listed twice", listing.name, object=id))
        ids[id] = None
    return list(ids)


def _lines(listing, defects):
    try:
        text, found = read_text(listing, LIST_BYTES, "empty list")
    except Unreadable as error:
        defects += error.defects
        return []
    defects += found
    lines = (line.strip() for line in text.splitlines())
    return [line.rpartition(".")[0] if line.lower().endswith(SUFFIXES) else line for line in lines if line]


def _picture(id, annotation, images, classes, defects, content):
    """The `Picture` of an id, or None where it has no annotation or no image; adds to `defects` and to the sha256
    `content`."""
    if annotation is None:
        defects.append(defect("missing annotation", f"{id}.xml"))
        return None
    if isinstance(annotation, Unreadable):
        defects += annotation.defects
        return None
    root, text, found = annotation
    file, misled = _image(id, _words(root, "filename"), images)
    defects += found + misled
    if file is None:
        return None
    content.update(text.encode(errors="replace"))
    objects, found = _objects(root, classes, file.name)
    defects += found
    return Picture(
        file, file.name, None, stated_size(root.findtext("size/width"), root.findtext("size/height")), objects
    )


def _image(id, filename, images):
    """(the image of an id, the defects of that): by the id, as VOC means it, or else by the name that the XML gives."""
    candidates = images.get(id, [])
    if filename and not within(Path(), filename):
        if not candidates:
            return None, [defect("path out of the folder", f"{id}.xml", f"({filename!r})")]
        return candidates[0], [defect("misleading filename", f"{id}.xml", f"({filename!r} is out of the folder)")]
    named = [file for file in images.get(filename.rpartition(".")[0], []) if file.name == filename]
    if not candidates and not named:
        return None, [defect("missing image", f"{id}.xml", f"({filename or id} is not there)")]
    return next((file for file in candidates if file in named), (candidates or named)[0]), []


def _objects(root, classes, file):
    """The objects of an annotation, boxes as they stand there, and the defects of those that cannot be taken."""
    objects, defects = [], []
    for index, item in enumerate(root.findall("object"), 1):
        name, box = _words(item, "name"), item.find("bndbox")
        title = f"object {index}{name and f' ({name})'}"
        missing = [tag for tag in CORNERS if box is None or box.find(tag) is None]
        if not name or missing:
            defects.append(defect("missing tag", file, f"<{', '.join(missing) or 'name'}>", title))
        elif name not in classes:
            defects.append(defect("unknown class", file, object=title))
        else:
            corners = tuple(number(box.findtext(tag)) for tag in CORNERS)
            if any(math.isfinite(value) and value != round(value) for value in corners):
                defects.append(defect("fractional coordinate", file, f"{corners}", title))
            objects.append(
                Object(
                    title, classes.index(name), corners, difficult=_words(item, "difficult").lower() in ("1", "true")
                )
            )
    return objects, defects
