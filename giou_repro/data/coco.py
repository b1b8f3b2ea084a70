"""COCO's JSON: the files of a folder, and their annotations. `datasets.load` opens them.

One file a split: annotations/instances_<split>.json with the images in <split>/ or images/, or
<split>/_annotations.coco.json with the images beside it, or any JSON with the lists images, annotations and categories.
"""

import json
import math
import os
from functools import partial
from pathlib import Path

from giou_repro.data.annotations import Object, Picture, number, read_text, similar_classes, within
from giou_repro.data.defects import Defect, Unreadable
from giou_repro.data.folder import Folder

LAYOUT = "COCO annotations (annotations/instances_<split>.json)"
ID = int | float | str
REQUIRED = {"images": {"id": ID}, "annotations": {}, "categories": {"id": ID, "name": str}}  # list → keys of an entry
SAMPLE = 50  # images by which their folder is identified


def sources(path: Path) -> dict:
    """split → its reader, `read` without the classes, of a folder or of one file; "all" is one file's content."""
    if path.is_file():
        return {"all": partial(read, path), _split(path): partial(read, path)}
    files = sorted([*path.glob("annotations/*.json"), *path.glob("*.json"), *path.glob("*/_annotations.coco.json")])
    instances = [file for file in files if file.name.startswith("instances_")]  # COCO has captions, too
    return {_split(file): partial(read, file) for file in instances or files}


def _split(file):
    return file.parent.name if file.name == "_annotations.coco.json" else file.stem.removeprefix("instances_")


def read(file: Path, classes: tuple | None = None) -> Folder:
    """The annotations of a JSON. classes: the names to take, or None for all categories by id.

    Raises Unreadable where it is not an object with lists of images, annotations and categories.
    """
    text, defects = read_text(file, "malformed JSON")
    lists = _lists(text, file.name, defects)
    names = _names(lists["categories"], file.name, defects)
    defects += similar_classes(names.values(), file.name)
    labels = {
        id: classes.index(name) if classes else position
        for position, (id, name) in enumerate(names.items())
        if not classes or name in classes
    }
    inside = file.parent.name == "annotations" or file.name == "_annotations.coco.json"
    name = file.resolve().parent.parent.name if inside else file.stem
    split = Folder(name, tuple(classes or names.values()), defects=defects)
    split.content.update(text.encode(errors="replace"))
    pictures = _pictures(lists["images"], file, defects)
    _add_objects(pictures, lists["annotations"], names, labels, file.name, defects)
    split.pictures += {picture.name: picture for picture in pictures.values() if picture.file}.values()
    return split


def _lists(text, file, defects):
    """The lists of a JSON, without entries that lack what is `REQUIRED`."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unreadable(Defect("malformed JSON", file, f"({error})")) from None
    lists = {}
    for name, required in REQUIRED.items():
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise Unreadable(Defect("malformed JSON", file, f'(it has no list "{name}")'))
        lists[name] = []
        for entry in content[name]:
            if isinstance(entry, dict) and all(isinstance(entry.get(key), kind) for key, kind in required.items()):
                lists[name].append(entry)
            else:
                defects.append(Defect("malformed entry", file, f"in {name}: {entry!r:.80}"))
    return lists


def _names(categories, file, defects):
    """id → name of the categories, by id."""
    names = {}
    for category in categories:
        id, name = category["id"], category["name"].strip()
        if id in names:
            defects.append(Defect("repeated category", file, f"({name!r} and {names[id]!r})", f"category {id}"))
        names.setdefault(id, name)
    return dict(sorted(names.items(), key=lambda pair: (isinstance(pair[0], str), pair[0])))


def _pictures(images, file, defects):
    """id → picture, without objects; the id of an entry that names a file again gives the first one's picture."""
    folder = _image_folder(file, images)
    pictures, by_name = {}, {}
    for image in images:
        id, name = image["id"], image.get("file_name")
        title = f"image {id}"
        if not isinstance(name, str) or not name:
            defects.append(Defect("unnamed image", file.name, object=title))
        elif id in pictures or name in by_name:
            defects.append(Defect("listed twice", file.name, f"({name!r})", title))
            pictures.setdefault(id, by_name.get(name))
        else:
            path, size = within(folder, name), (number(image.get("width")), number(image.get("height")))
            available = path if path and os.path.isfile(path) else None
            pictures[id] = by_name[name] = Picture(available, name, id if isinstance(id, int) else None, size, [])
            if path is None:
                defects.append(Defect("path out of the folder", file.name, f"({name!r})", title))
            elif not available:
                defects.append(Defect("missing image", name, f"(not in {folder})", title))
    return pictures


def _add_objects(pictures, annotations, names, labels, file, defects):
    """Add each annotation to the objects of its picture, boxes as xyxy."""
    ids = set()
    for place, entry in enumerate(annotations):
        id, image, category, box = (entry.get(key) for key in ("id", "image_id", "category_id", "bbox"))
        id = id if isinstance(id, ID) else f"at place {place}"
        title = f"annotation {id}"
        if id in ids:
            defects.append(Defect("repeated id", file, object=title))
        ids.add(id)
        picture = pictures.get(image) if isinstance(image, ID) else None
        name = names.get(category) if isinstance(category, ID) else None
        title += f" ({name})" if name else ""
        if picture is None:
            defects.append(Defect("unknown image", file, f"{image!r:.80}", title))
        elif name is None or category not in labels:
            detail = f"category {category!r:.80}" if name is None else ""
            defects.append(Defect("unknown class", picture.name, detail, title))
        elif not isinstance(box, list) or len(box) != 4:
            detail = "bbox" if box is None else f"bbox {box!r:.80}"
            defects.append(Defect("missing tag", picture.name, detail, title))
        else:
            picture.objects.append(_object(title, labels[category], box, entry))


def _object(title, label, box, entry):
    x, y, w, h = map(number, box)
    area = number(entry.get("area"))
    return Object(
        title,
        label,
        (x, y, x + w, y + h),
        crowd=entry.get("iscrowd") in (1, "1"),
        area=area if 0 < area < math.inf else math.nan,
        segmentation=entry.get("segmentation"),
    )


def _image_folder(file, images):
    """The folder of a JSON's images: of the usual places, the one that has the most of a sample."""
    split, above = _split(file), file.parent.parent
    names = ["images", *(f"{place}{name}" for place in ("", "images/") for name in (split, split.rstrip("0123456789")))]
    folders = [file.parent, *(parent / name for parent in (file.parent, above) for name in names), above]
    sample = [str(image.get("file_name")) for image in images[:SAMPLE]]
    return max(folders, key=lambda folder: sum(os.path.isfile(within(folder, name) or "") for name in sample))
