"""YOLO's text: settings in a YAML, which names folders or lists of images, and a text with the boxes of each image.
`datasets.load` opens them.

A line is a class and a box (centre, width, height) or a polygon (x, y in turn; an oriented box as its corners), in
shares of the image. The text of images/train/a.jpg is labels/train/a.txt, or a.txt beside it.
"""

import os
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path

import yaml

from giou_repro.data.annotations import (
    IMAGES,
    Object,
    Picture,
    class_names,
    files_below,
    missing_files,
    number,
    read_text,
    utf8_name,
)
from giou_repro.data.defects import Defect, Unreadable
from giou_repro.data.folder import Folder

LAYOUT = "YOLO settings (data.yaml with names: and train:)"
SPLITS = ("train", "val", "valid", "test", "minival")
LARGEST = 4 * 2**20  # bytes of a text
FAR = 2  # above it, or below -1, a number is no share of an image, though a polygon may leave its image


def sources(path: Path) -> dict:
    """split → its reader, see `_read`; empty where there are no settings."""
    file, settings = _settings(path)
    return {split: partial(_read, file, settings, split) for split in SPLITS if settings.get(split)}


def files(path: Path) -> list[Path]:
    """The settings, and all lists, images and texts that they lead to."""
    file, settings = _settings(path)
    found = [file, *(place for split in SPLITS for place in _places(file, settings, split))]
    for place in found[1:]:
        with suppress(Unreadable):
            found += [file for image in _images(place) for file in (image, _text_of(image))]
    return found


def _settings(path):
    """(file, content) of the first YAML with the names of classes; (path, {}) where none has them."""
    for file in [path] if path.is_file() else sorted(path.glob("*.*")):
        with suppress(Unreadable, yaml.YAMLError, ValueError, RecursionError):
            if file.suffix.lower() in (".yaml", ".yml"):
                content = yaml.safe_load(read_text(file, "malformed annotation", LARGEST)[0])
                if isinstance(content, dict) and isinstance(content.get("names"), dict | list):
                    return file, content
    return path, {}


def _places(file, settings, split):
    """The folders and lists of a split: under the settings' `path` or beside the settings, whichever is there; also
    where ../ leads too far up, as in Roboflow's."""
    entries, root = settings.get(split) or [], str(settings.get("path") or "")
    for entry in map(str, entries if isinstance(entries, list) else [entries]):
        ways = [file.parent / folder / way for folder in (root, "") for way in (entry, entry.removeprefix("../"))]
        yield next((way for way in ways if os.path.exists(way)), ways[0])


def _images(place):
    """The images in a folder, or of the lines of a list, as they lie from there."""
    if place.is_dir():
        return [file for file in files_below(place) if file.suffix.lower() in IMAGES]
    lines = map(str.strip, read_text(place, "empty list")[0].replace("\\", "/").splitlines())
    return [place.parent / line for line in lines if Path(line).name]


def _text_of(image):
    beside = image.absolute().with_suffix(".txt")
    head, _, tail = beside.as_posix().rpartition("/images/")
    mirrored = Path(head, "labels", tail)
    return mirrored if os.path.isfile(mirrored) else beside


def _read(file: Path, settings: dict, split: str, classes: tuple | None = None, background: bool = False) -> Folder:
    """The annotations of a split.

    classes: the names to take, or None for all;  background: whether an image without a text has no objects. Raises
    Unreadable where a folder or list of the split is not there, or a list is empty.
    """
    ds = Folder(utf8_name(file.resolve().parent), (), "shares")
    names = settings["names"] if isinstance(settings["names"], dict) else dict(enumerate(settings["names"]))
    pairs = [
        (id if isinstance(id, int) else number(id), str(name))
        for id, name in names.items()
        if isinstance(name, str | int)
    ]
    names = class_names(pairs, utf8_name(file), ds.defects)
    ds.classes = tuple(classes or dict.fromkeys(names.values()))
    places = list(_places(file, settings, split))
    if gone := [str(place) for place in places if not os.path.exists(place)]:
        raise Unreadable(Defect("missing folder", utf8_name(file), f"({', '.join(gone)})"))
    listed, missing, unannotated = Counter(image for place in places for image in _images(place)), [], []
    ds.defects += [Defect("listed twice", utf8_name(image)) for image, count in listed.items() if count > 1]
    texts = {image: _text_of(image) for image in listed}
    for image, text in texts.items():
        if not os.path.isfile(image):
            missing.append((utf8_name(image), "", image.name))
        elif os.path.isfile(text) or background:
            _add(image, text, names, "kpt_shape" in settings, ds)
        else:
            unannotated.append((utf8_name(image), "", text.name))
    folders = {text.parent for text in texts.values() if "labels" in text.parts and all(map(Path.is_dir, places))}
    alone = sorted({text for folder in folders for text in folder.glob("*.txt")} - {*texts.values()})
    missing += [(text.name, "", text.stem) for text in alone]
    ds.defects += missing_files("missing annotation", file.parent, ("labels", *places), unannotated)
    ds.defects += missing_files("missing image", file.parent, places, missing)
    return ds


def _add(image, text, names, has_keypoints, ds):
    """Add an image to a set, with the objects of its text, where there is one."""
    try:
        has_lines = os.path.isfile(text) and os.path.getsize(text)
        content, defects = read_text(text, "malformed annotation", LARGEST) if has_lines else ("", [])
    except Unreadable as error:
        ds.defects += error.defects
        return
    picture = Picture(image, utf8_name(image), None, None, [])
    ds.defects += defects
    ds.pictures.append(picture)
    ds.content.update(content.encode(errors="replace"))
    for place, words in enumerate(map(str.split, content.splitlines()), 1):
        if words:
            label, *values = map(number, words)
            values, name = values[: 4 if has_keypoints else None], names.get(label, f"class {words[0]:.20}")
            kinds = {
                "malformed entry": len(values) in (0, 2, 5) or len(values) % 2,  # a box has 4, a polygon 6 or more
                "unknown class": name not in ds.classes,
                "not a share": any(value > FAR or value < 1 - FAR for value in values),
            }
            title, wrong = f"line {place} ({name})", [kind for kind, applies in kinds.items() if applies]
            if wrong:
                ds.defects.append(Defect(wrong[0], picture.name, f"({', '.join(words[1:]):.80})", title))
            else:
                picture.objects.append(Object(title, ds.classes.index(name), **_shape(values)))


def _shape(values):
    """The box, and of a polygon the segmentation, that the numbers of a line stand for."""
    if len(values) > 4:
        xs, ys = values[::2], values[1::2]
        return dict(box=(min(xs), min(ys), max(xs), max(ys)), segmentation=[values])
    x, y, w, h = values
    return dict(box=(x - w / 2, y - h / 2, x + w / 2, y + h / 2))
