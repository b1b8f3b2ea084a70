"""COCO's JSON: the files of a folder, and their annotations. `datasets.load` opens them.

One file a split: annotations/instances_<split>.json with the images in <split>/ or images/, or
<split>/_annotations.coco.json with the images beside it, or any JSON with the lists images, annotations and categories.
"""

import json
import os
from collections import defaultdict
from contextlib import suppress
from functools import partial
from pathlib import Path

from giou_repro.data.annotations import (
    Object,
    Picture,
    class_names,
    missing_files,
    number,
    read_text,
    utf8_name,
    within,
)
from giou_repro.data.defects import Defect, Unreadable
from giou_repro.data.folder import Folder

LAYOUT = "COCO annotations (annotations/instances_<split>.json)"
ID = int | float | str
REQUIRED = {"images": {"id": ID}, "annotations": {}, "categories": {"id": ID, "name": str}}  # list → keys of an entry
USUAL = ("images", ".", "data", "JPEGImages", "Images", "imgs")  # folders of images, where none has the split's name
SAMPLE = 50  # images by which their folder is identified


def sources(path: Path) -> dict:
    """split → its reader, from classes (or None) to a `Folder`, of a folder or of one file; "all" is one file's
    content."""
    if path.is_file() and path.suffix.lower() not in (".yaml", ".yml"):
        return {"all": partial(_read, path), _split(path): partial(_read, path)}
    places = ("annotations/*.json", "*.json", "*/_annotations*.json")
    files = [file for place in places for file in sorted(path.glob(place)) if file.name[0] != "."]
    instances = [file for file in files if file.name.startswith("instances_")]  # COCO has captions, too
    readers = {}
    for file in instances or [file for file in files if not _is_other(file)] or files:
        split = _split(file)
        readers[file.relative_to(path).as_posix() if split in readers else split] = partial(_read, file)
    return readers


def files(path: Path) -> list[Path]:
    """All annotation files, and the images that they list."""
    found = list(dict.fromkeys(reader.args[0] for reader in sources(path).values()))
    for file in tuple(found):
        with suppress(Unreadable):
            found += [picture.file for picture in _read(file).pictures]
    return found


def _is_other(file):
    """Whether a JSON of at most 1 MiB is sound and has none of the lists: settings, or what another tool left."""
    with suppress(Unreadable, ValueError, RecursionError):
        content = json.loads(read_text(file, "malformed JSON", 2**20)[0])
        return not isinstance(content, dict) or not REQUIRED.keys() & content.keys()
    return False


def _split(file):
    if file.name.startswith("_annotations"):
        return utf8_name(file.parent)
    return utf8_name(file).removesuffix(file.suffix).removeprefix("instances_")


def _read(file: Path, classes: tuple | None = None, background: bool = False) -> Folder:
    """The annotations of a JSON. classes: the names to take, or None for all categories by id; `background` changes
    nothing, for an image that is listed without an annotation is that.

    Raises Unreadable where it is not an object with lists of images, annotations and categories.
    """
    text, defects = read_text(file, "malformed JSON")
    name = utf8_name(file)
    lists = _lists(text, name, defects)
    names = class_names([(category["id"], category["name"]) for category in lists["categories"]], name, defects)
    classes = tuple(classes or dict.fromkeys(names.values()))
    inside = file.parent.name == "annotations" or file.name.startswith("_annotations")
    whole = utf8_name(file.resolve().parents[1]) if inside else name.removesuffix(file.suffix)
    pictures = _pictures(lists["images"], file, defects)
    _add_objects(pictures, lists["annotations"], names, classes, name, defects)
    split = Folder(whole, classes, defects=defects)
    split.content.update(text.encode(errors="replace"))
    split.pictures += {picture.file: picture for picture in pictures.values() if picture.file}.values()
    return split


def _lists(text, file, defects):
    """The lists of a JSON, without entries that lack what is `REQUIRED`."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unreadable(Defect("malformed JSON", file, f"({error})")) from None
    lists = defaultdict(list)
    for name, required in REQUIRED.items():
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise Unreadable(Defect("malformed JSON", file, f'(it has no list "{name}")'))
        for entry in content[name]:
            if isinstance(entry, dict) and all(isinstance(entry.get(key), kind) for key, kind in required.items()):
                lists[name].append(entry)
            else:
                defects.append(Defect("malformed entry", file, f"in {name}: {entry!r:.80}"))
    return lists


def _pictures(images, file, defects):
    """id → picture, without objects. Entries that name one file share its picture; of an id that stands for several
    files no picture has one, because nobody knows whose its annotations are."""
    root, looked, folder = _image_folder(file, images)
    by_file, by_id, missing = {}, defaultdict(list), []
    for image in images:
        id, name = image["id"], image.get("file_name")
        title = f"image {id}"
        if not isinstance(name, str) or not name:
            defects.append(Defect("unnamed image", utf8_name(file), object=title))
            continue
        path = within(folder, name)
        available = path if path and os.path.isfile(path) else None
        if (path or name) in by_file:
            defects.append(Defect("listed twice", utf8_name(file), f"({name!r})", title))
        elif path is None:
            defects.append(Defect("path out of the folder", utf8_name(file), f"({name!r})", title))
        elif not available:
            missing.append((name, title, name))
        size = number(image.get("width")), number(image.get("height"))
        new = Picture(available, name, id if isinstance(id, int) else None, size, [])
        by_id[id].append(by_file.setdefault(path or name, new))
    defects += missing_files("missing image", root, looked, missing)
    for id, claimed in by_id.items():
        if len(names := {picture.name for picture in claimed}) > 1:
            defects.append(Defect("ambiguous id", utf8_name(file), f"({', '.join(sorted(names))})", f"image {id}"))
            for picture in claimed:
                picture.file = None
    return {id: claimed[0] for id, claimed in by_id.items()}


def _add_objects(pictures, annotations, names, classes, file, defects):
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
        elif name not in classes:
            detail = f"category {category!r:.80}" if name is None else ""
            defects.append(Defect("unknown class", picture.name, detail, title))
        elif not isinstance(box, list) or len(box) != 4:
            detail = "bbox" if box is None else f"bbox {box!r:.80}"
            defects.append(Defect("missing tag", picture.name, detail, title))
        else:
            x, y, w, h = map(number, box)
            area = None if entry.get("area") is None else number(entry["area"])
            flags, mask = (False, entry.get("iscrowd") in (1, "1")), entry.get("segmentation")
            picture.objects.append(Object(title, classes.index(name), (x, y, x + w, y + h), *flags, area, mask))


def _image_folder(file, images):
    """(a folder around all, the places that were looked at as text, the folder of a JSON's images): of the usual places
    the one that has the most of a sample, those named after the split first."""
    split = _split(file)
    names = [f"{place}{name}" for name in (split, split.rstrip("0123456789")) for place in ("", "images/")]
    root = file.parent.parent if file.parent.name in ("annotations", split) else file.parent
    folders = [parent / name for name in (*names, *USUAL) for parent in (file.parent, file.parent.parent)]
    sample = [str(image.get("file_name")) for image in images[:SAMPLE]]
    folder = max(folders, key=lambda folder: sum(os.path.isfile(within(folder, name) or "") for name in sample))
    return root, dict.fromkeys(folders), folder
