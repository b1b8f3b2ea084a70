"""COCO's JSON: which files a folder has, and what they say. `datasets.load` opens them.

One file a split: annotations/instances_<split>.json with the images in <split>/ or images/, or
<split>/_annotations.coco.json with the images beside it, or any JSON with the lists images, annotations and categories.
"""

import hashlib
import math
import os

from giou_repro.data.defects import Object, Picture, defect, number, parse_json, similar_classes, stated_size, within

SAMPLE = 50  # images by which their folder is found


def sources(path):
    """split → JSON file, of a folder or of one file; "all" is what one file holds."""
    if path.is_file():
        return {"all": path, _split(path): path}
    files = sorted([*path.glob("annotations/*.json"), *path.glob("*.json"), *path.glob("*/_annotations.coco.json")])
    instances = [
        file for file in files if file.name.startswith("instances_")
    ]  # beside them COCO has captions and keypoints
    return {_split(file): file for file in instances or files}


def _split(file):
    return file.parent.name if file.name == "_annotations.coco.json" else file.stem.removeprefix("instances_")


def read(file, split, classes=None):
    """What a JSON says: (name, classes, pictures, defects, sha256 of the annotations so far).

    classes: the names to take, or None for all categories by id. Raises Unreadable where it is no such JSON.
    """
    content, text, defects = parse_json(file)
    names = _categories(content["categories"], file.name, defects)
    defects += similar_classes(names.values(), file.name)
    labels = (
        {id: classes.index(name) for id, name in names.items() if name in classes}
        if classes
        else {id: k for k, id in enumerate(names)}
    )
    images, again = _images(content["images"], file.name, defects)
    objects = _objects(content["annotations"], names, labels, images, again, file.name, defects)
    pictures = _pictures(images, objects, _image_folder(file, split, images.values()), file.name, defects)
    inside = file.parent.name == "annotations" or file.name == "_annotations.coco.json"
    name = file.resolve().parent.parent.name if inside else file.stem
    return name, tuple(classes or names.values()), pictures, defects, hashlib.sha256(text.encode(errors="replace"))


def _pictures(images, objects, folder, file, defects):
    pictures = []
    for id, image in images.items():
        name, title = image["file_name"], f"image {id}"
        path = within(folder, name)
        if path is None:
            defects.append(defect("path out of the folder", file, f"({name!r})", title))
        elif not os.path.isfile(path):
            defects.append(defect("missing image", name, f"(not in {folder})", title))
        else:
            number = id if isinstance(id, int) else None
            pictures.append(
                Picture(path, name, number, stated_size(image.get("width"), image.get("height")), objects[id])
            )
    return pictures


def _is_id(value):
    return isinstance(value, int | float | str) and not isinstance(value, bool) and value == value


def _categories(entries, file, defects):
    """id → name, by id."""
    names = {}
    for entry in entries:
        if not isinstance(entry, dict) or not _is_id(entry.get("id")) or not isinstance(entry.get("name"), str):
            defects.append(defect("malformed entry", file, f"in categories: {entry!r:.80}"))
        elif entry["id"] in names:
            defects.append(
                defect(
                    "repeated category",
                    file,
                    f"({entry['name']!r} and {names[entry['id']]!r})",
                    f"category {entry['id']}",
                )
            )
        else:
            names[entry["id"]] = entry["name"].strip()
    return dict(sorted(names.items(), key=lambda pair: (isinstance(pair[0], str), pair[0])))


def _images(entries, file, defects):
    """(id → entry of each image file; id of an entry that names a file again → the first one's id, which takes its
    objects)."""
    images, again, first = {}, {}, {}
    for entry in entries:
        if not isinstance(entry, dict) or not _is_id(entry.get("id")):
            defects.append(defect("malformed entry", file, f"in images: {entry!r:.80}"))
            continue
        id, name = entry["id"], entry.get("file_name")
        if not isinstance(name, str) or not name:
            defects.append(defect("unnamed image", file, object=f"image {id}"))
        elif id in images or id in again or name in first:
            defects.append(defect("listed twice", file, f"({name!r})", f"image {id}"))
            if id not in images:
                again.setdefault(id, first.get(name))
        else:
            images[id] = entry
            first[name] = id
    return images, again


def _objects(entries, names, labels, images, again, file, defects):
    """image id → its objects, boxes as xyxy."""
    objects, seen = {id: [] for id in images}, set()
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict):
            defects.append(defect("malformed entry", file, f"in annotations: {entry!r:.80}"))
            continue
        id, image, category, box = (entry.get(key) for key in ("id", "image_id", "category_id", "bbox"))
        title = f"annotation {id if _is_id(id) else f'at place {place}'}"
        if _is_id(id) and id in seen:
            defects.append(defect("repeated id", file, object=title))
        seen.add(id if _is_id(id) else None)
        image = again.get(image, image) if _is_id(image) else None
        if image not in objects:
            defects.append(defect("unknown image", file, f"{entry.get('image_id')!r:.80}", title))
            continue
        where, known = images[image]["file_name"], _is_id(category) and category in names
        title += f" ({names[category]})" if known else ""
        if not known or category not in labels:
            defects.append(defect("unknown class", where, "" if known else f"category {category!r:.80}", title))
        elif not isinstance(box, list) or len(box) != 4:
            defects.append(defect("missing tag", where, "bbox" if box is None else f"bbox {box!r:.80}", title))
        else:
            x, y, w, h = map(number, box)
            own = number(entry.get("area"))
            own = own if math.isfinite(own) and own > 0 else None
            flags = dict(crowd=entry.get("iscrowd") in (1, "1"), area=own, segmentation=entry.get("segmentation"))
            objects[image].append(Object(title, labels[category], (x, y, x + w, y + h), **flags))
    return objects


def _image_folder(file, split, images):
    """Where the images of a JSON are: of the usual places, the one that has the most of a few."""
    here, above, names = file.parent, file.parent.parent, (_split(file), split)
    places = [
        here,
        here / "images",
        *(here / name for name in names),
        above / "images",
        *(above / name for name in names),
    ]
    places += [*(above / "images" / name for name in names), above]
    some = [image["file_name"] for _, image in zip(range(SAMPLE), images, strict=False)]
    return max(
        places, key=lambda place: sum(bool(path := within(place, name)) and os.path.isfile(path) for name in some)
    )
