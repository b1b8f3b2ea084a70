"""COCO's JSON: the files of a folder, and their annotations. `datasets.load` opens them.

One file a split: annotations/instances_<split>.json with the images in <split>/ or images/, or
<split>/_annotations.coco.json with the images beside it, or any JSON with the lists images, annotations and categories.
"""

import json
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from giou_repro.data.annotations import (
    Annotations,
    Object,
    Picture,
    number,
    read_text,
    similar_classes,
    stated_size,
    within,
)
from giou_repro.data.defects import Defect, Unreadable

LAYOUT = "COCO annotations (annotations/instances_<split>.json)"
ID = int | float | str
SAMPLE = 50  # images by which their folder is identified


def sources(path: Path) -> dict[str, Callable]:
    """split → its reader, `read` but for the classes, of a folder or of one file; "all" is one file's content."""
    if path.is_file():
        return {"all": partial(read, path), _split(path): partial(read, path)}
    files = sorted([*path.glob("annotations/*.json"), *path.glob("*.json"), *path.glob("*/_annotations.coco.json")])
    instances = [file for file in files if file.name.startswith("instances_")]  # COCO has captions, too
    return {_split(file): partial(read, file) for file in instances or files}


def _split(file):
    return file.parent.name if file.name == "_annotations.coco.json" else file.stem.removeprefix("instances_")


def read(file: Path, classes: tuple | None = None) -> Annotations:
    """The annotations of a JSON. classes: the names to take, or None for all categories by id.

    Raises Unreadable where it is not an object with lists of images, annotations and categories.
    """
    text, defects = read_text(file, "malformed JSON")
    lists = _lists(text, file.name, defects)
    names = _names(lists["categories"], file.name, defects)
    defects += similar_classes(names.values(), file.name)
    inside = file.parent.name == "annotations" or file.name == "_annotations.coco.json"
    name = file.resolve().parent.parent.name if inside else file.stem
    split = Annotations(name, tuple(classes or names.values()), defects=defects)
    split.content.update(text.encode(errors="replace"))
    images, repeated = _images(lists["images"], file.name, defects)
    labels = {id: label for label, id in enumerate(names)}
    if classes:
        labels = {id: split.classes.index(name) for id, name in names.items() if name in split.classes}
    objects = _objects(lists["annotations"], names, labels, images, repeated, file.name, defects)
    split.pictures += _pictures(images, objects, _image_folder(file, images.values()), file.name, defects)
    return split


def _lists(text, file, defects):
    """The three lists of a JSON, without entries that are no dicts or, but for annotations, have no usable id."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unreadable(Defect("malformed JSON", file, f"({error})")) from None
    lists = {}
    for name in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise Unreadable(Defect("malformed JSON", file, f'(it has no list "{name}")'))
        lists[name] = []
        for entry in content[name]:
            if isinstance(entry, dict) and (name == "annotations" or isinstance(entry.get("id"), ID)):
                lists[name].append(entry)
            else:
                defects.append(Defect("malformed entry", file, f"in {name}: {entry!r:.80}"))
    return lists


def _names(categories, file, defects):
    """id → name of the categories, by id."""
    names = {}
    for category in categories:
        id, name = category["id"], category.get("name")
        if not isinstance(name, str):
            defects.append(Defect("malformed entry", file, f"in categories: {category!r:.80}"))
        elif id in names:
            defects.append(Defect("repeated category", file, f"({name!r} and {names[id]!r})", f"category {id}"))
        else:
            names[id] = name.strip()
    return dict(sorted(names.items(), key=lambda pair: (isinstance(pair[0], str), pair[0])))


def _images(entries, file, defects):
    """(id → entry of each image file; id of an entry that names a file again → id of the first, which takes its
    objects)."""
    images, repeated, ids = {}, {}, {}
    for entry in entries:
        id, name = entry["id"], entry.get("file_name")
        if not isinstance(name, str) or not name:
            defects.append(Defect("unnamed image", file, object=f"image {id}"))
        elif id in images or id in repeated or name in ids:
            defects.append(Defect("listed twice", file, f"({name!r})", f"image {id}"))
            if id not in images:
                repeated.setdefault(id, ids.get(name))
        else:
            images[id], ids[name] = entry, id
    return images, repeated


def _objects(annotations, names, labels, images, repeated, file, defects):
    """image id → its objects, boxes as xyxy."""
    objects, ids = {id: [] for id in images}, set()
    for place, entry in enumerate(annotations):
        id, image, category, box = (entry.get(key) for key in ("id", "image_id", "category_id", "bbox"))
        id = id if isinstance(id, ID) else f"at place {place}"
        if id in ids:
            defects.append(Defect("repeated id", file, object=f"annotation {id}"))
        ids.add(id)
        image = repeated.get(image, image) if isinstance(image, ID) else None
        if image not in objects:
            detail = f"{entry.get('image_id')!r:.80}"
            defects.append(Defect("unknown image", file, detail, f"annotation {id}"))
            continue
        name = names.get(category) if isinstance(category, ID) else None
        title = f"annotation {id}" + (f" ({name})" if name else "")
        picture = images[image]["file_name"]
        if name is None or category not in labels:
            detail = f"category {category!r:.80}" if name is None else ""
            defects.append(Defect("unknown class", picture, detail, title))
        elif not isinstance(box, list) or len(box) != 4:
            detail = "bbox" if box is None else f"bbox {box!r:.80}"
            defects.append(Defect("missing tag", picture, detail, title))
        else:
            objects[image].append(_object(title, labels[category], box, entry))
    return objects


def _object(title, label, box, entry):
    x, y, w, h = map(number, box)
    area = number(entry.get("area"))
    return Object(
        title,
        label,
        (x, y, x + w, y + h),
        crowd=entry.get("iscrowd") in (1, "1"),
        area=area if 0 < area < math.inf else None,
        segmentation=entry.get("segmentation"),
    )


def _pictures(images, objects, folder, file, defects):
    pictures = []
    for id, image in images.items():
        name, title = image["file_name"], f"image {id}"
        path = within(folder, name)
        if path is None:
            defects.append(Defect("path out of the folder", file, f"({name!r})", title))
        elif not os.path.isfile(path):
            defects.append(Defect("missing image", name, f"(not in {folder})", title))
        else:
            size = stated_size(image.get("width"), image.get("height"))
            pictures.append(Picture(path, name, id if isinstance(id, int) else None, size, objects[id]))
    return pictures


def _image_folder(file, images):
    """The folder of a JSON's images: of the usual places, the one that has the most of a sample."""
    split, above = _split(file), file.parent.parent
    names = ["images", *(f"{place}{name}" for place in ("", "images/") for name in (split, split.rstrip("0123456789")))]
    folders = [file.parent, *(parent / name for parent in (file.parent, above) for name in names), above]
    sample = [image["file_name"] for _, image in zip(range(SAMPLE), images, strict=False)]
    return max(folders, key=lambda folder: sum(os.path.isfile(within(folder, name) or "") for name in sample))
