"""Images with boxes: generated scenes, Pascal VOC folders and COCO JSON, opened by `load` and checked as they are
opened.

A data set has `name`, `classes`, `split`, `has_masks`, `defects` (a list of `Defect`), `checksum` (sha256 over
annotations, image names and sizes), `len(ds)`, and `ds[i]` gives (image, target):

    image       uint8 (3, H, W), RGB
    boxes       float32 (n, 4), xyxy in continuous pixels of the image: (0, 0, W, H) is all of it; n may be 0
    labels      int64 (n,), 0 to C − 1, an index into `classes`
    difficult   bool (n,), VOC's flag;    crowd   bool (n,), COCO's flag
    area        float32 (n,), px²: COCO's own where it has one, or the box's
    masks       bool (n, H, W), where `has_masks`
    image_id    int: COCO's id, or the index

What is wrong with a set is found when it is opened, which reads the headers of its images and decodes none that seems
whole; it is repaired, dropped or skipped, as `defects.ACTIONS` says. `check` decodes everything. A picture that is
broken behind a sound header, or changed since, raises `Unreadable` from `ds[i]`: whoever reads a whole set catches it
and goes on, so that no file ends a training.
"""

import hashlib
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from giou_repro.boxes import area
from giou_repro.data import coco, generated, voc
from giou_repro.data.defects import (
    Defect,
    Unreadable,
    checked_segmentation,
    clean,
    decode,
    defect,
    header,
    mask,
    summary,
)
from giou_repro.runs import store

__all__ = ["Defect", "Unreadable", "check", "download", "load", "report", "splits", "summary"]

DOWNLOADS = {"voc2007": "VOC2007", "voc2012": "VOC2012"}


def load(dataset, split, seed=0, images=1000, image_size=128, classes=None):
    """Open a split of a data set.

    dataset: "shapes" (generated: `images` scenes of `image_size` px from `seed`; see `generated`), "voc2007" or
    "voc2012" (see `download`), a Pascal VOC folder (VOC20xx, a VOCdevkit of several, or any folder of XML files), a
    COCO JSON, or a folder of COCO JSON files, one a split. Images in files keep their own size, and all of them are
    taken. classes: the names to take, in this order; by default all there are: the VOC 20 where no other is found, or
    else the names found over all annotations of the folder in alphabetical order, or COCO's categories by id.

    split: a name that `splits` lists, or a part of it in files: "train[:80%]" are the first 80 % of its images,
    "train[80%:]" the rest.

    Raises FileNotFoundError where there is no such path, ValueError for a split it does not have or a part without an
    image, and `Unreadable`, a ValueError that says why, where nothing of it can be used.
    """
    if dataset == "shapes":
        return generated.generate(split, seed, images, image_size)
    path = _path(dataset)
    sources = _sources(path)
    whole, first, last = _part(split)
    source = _pick(sources, whole, path)
    content = (
        coco.read(source, whole, classes) if isinstance(source, Path) else voc.read(sources["all"], source, classes)
    )
    pictures, count = content[2], len(content[2])
    pictures[:] = pictures[round(first / 100 * count) : round(last / 100 * count)]
    if count and not pictures:
        remedy = f"take a larger part, as {whole}[:80%] or {whole}[80%:]"
        raise ValueError(f"{path}: {split!r} holds none of the {count} images of {whole!r}; {remedy}")
    opened = _open(split, *content, inclusive=not isinstance(source, Path))
    if not len(opened):
        about = f"{path}: no image of split {split!r} can be used; the splits are {', '.join(sources)}\n"
        raise Unreadable(*(opened.defects or [defect("missing image", path.name, "(it lists none)")]), about=about)
    return opened


def check_splits(dataset, *names):
    """Raise as `load` does for a path or split that is not there, without reading annotations."""
    for name in names:
        if dataset == "shapes":
            generated.check_split(name)
        else:
            path = _path(dataset)
            _pick(_sources(path), _part(name)[0], path)


def splits(dataset):
    """The names of the splits that `load` can open; "all", where there is one, comes first. Raises
    FileNotFoundError."""
    return list(generated.STREAMS) if dataset == "shapes" else list(_sources(_path(dataset)))


def download(name):
    """Fetch "voc2007" (trainval and test) or "voc2012" (trainval) by torchvision into the project's data/; returns the
    folder."""
    if name not in DOWNLOADS:
        raise ValueError(f"{name!r} cannot be downloaded; there are {', '.join(DOWNLOADS)}")
    try:
        from torchvision.datasets import VOCDetection
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"a download needs {error.name}: pip install 'giou-repro[detection]'") from None
    data = store.project_folder() / "data"
    for part in ("trainval", "test") if name == "voc2007" else ("trainval",):
        VOCDetection(str(data), year="2007-test" if part == "test" else name[3:], image_set=part, download=True)
    return _downloaded(name)


def _downloaded(name):
    return store.project_folder() / "data" / "VOCdevkit" / DOWNLOADS[name]


def _path(dataset):
    path = _downloaded(dataset) if dataset in DOWNLOADS else Path(dataset)
    if path.exists():
        return path
    if dataset in DOWNLOADS:
        raise FileNotFoundError(f"{dataset} is not at {path}; fetch it: giou-repro data download {dataset}")
    raise FileNotFoundError(
        f"no data set at {path}; give shapes, {', '.join(DOWNLOADS)}, a Pascal VOC folder or a COCO JSON"
    )


def _sources(path):
    """split → what `voc.read` or `coco.read` takes for it."""
    sources = {} if path.is_file() else voc.sources(path)
    sources = sources or coco.sources(path)
    if not sources:
        raise FileNotFoundError(
            f"{path} holds no Pascal VOC annotations (Annotations/*.xml) and no COCO ones (annotations/instances_<split>.json)"
        )
    return sources


def _part(split):
    """(name, first, last) of a split such as "train[20%:80%]", in per cent of its images; (name, 0, 100) where it is
    whole."""
    name, bracket, _ = split.partition("[")
    if not bracket:
        return name, 0, 100
    found = re.fullmatch(r"\[(?:(\d+)%)?:(?:(\d+)%)?\]", split[len(name) :])
    first, last = (int(found[1] or 0), int(found[2] or 100)) if found else (0, 0)
    if not first < last <= 100:
        raise ValueError(f"split {split!r}: a part is written as train[:80%], train[80%:] or train[20%:80%]")
    return name, first, last


def _pick(sources, split, path):
    """The source of a split: of this name or, as COCO and Roboflow name them, train in train2017 and val in valid."""
    words = {"val": {"val", "valid", "validation"}}.get(split, {split})
    close = [name for name in sources if words & set(re.findall("[a-z]+", name.lower()))]
    if split in sources:
        return sources[split]
    if len(close) == 1:
        return sources[close[0]]
    remedy = "; name the folder of the JSON files to reach others" if path.is_file() else ""
    if split in ("train", "val") and not close:
        whole = next(iter(sources))
        remedy += f'; or divide it: train_split "{whole}[:80%]", val_split "{whole}[80%:]"'
    raise ValueError(f"{path} has no split {split!r}; it has {', '.join(close or sources)}{remedy}")


def in_both(first, second):
    """How many of the pictures `second` are in `first` too: the same file, or another one with the same bytes."""
    files = {(one.state.st_dev, one.state.st_ino) for one in first}
    others = [one for one in second if (one.state.st_dev, one.state.st_ino) not in files]
    sizes = {one.state.st_size for one in first} & {one.state.st_size for one in others}
    known = {_digest(one) for one in first if one.state.st_size in sizes}
    return len(second) - len(others) + sum(one.state.st_size in sizes and _digest(one) in known for one in others)


def _digest(picture):
    try:
        return hashlib.sha256(picture.file.read_bytes()).digest()
    except OSError:  # whoever reads the set says so
        return picture.file


@dataclass
class Folder:
    """A data set in files; `load` makes it. The module's text says what `ds[i]` gives."""

    name: str
    split: str
    classes: tuple
    pictures: list
    defects: list
    checksum: str
    has_masks: bool

    def __len__(self):
        return len(self.pictures)

    @property
    def stamp(self):
        """sha256 over the checksum and the time of each image file: what copies of its pixels are known by."""
        times = [one.state.st_mtime_ns for one in self.pictures]
        return hashlib.sha256(repr((self.checksum, times)).encode()).hexdigest()

    def __getitem__(self, index):
        picture = self.pictures[index]
        image = decode(picture.file, picture.turned)
        height, width = image.shape[:2]
        if (width, height) != (picture.width, picture.height):
            detail = f"({width}x{height} now, {picture.width}x{picture.height} when the set was opened)"
            raise Unreadable(defect("unreadable image", picture.name, detail))
        return torch.from_numpy(image).permute(2, 0, 1).contiguous(), _target(picture, self.has_masks)


def _target(picture, has_masks):
    objects = picture.objects
    boxes = torch.tensor([item.box for item in objects], dtype=torch.float32).reshape(-1, 4)
    own = torch.tensor([np.nan if item.area is None else item.area for item in objects], dtype=torch.float32)
    target = dict(
        image_id=picture.id,
        boxes=boxes,
        labels=torch.tensor([item.label for item in objects], dtype=torch.int64),
        difficult=torch.tensor([item.difficult for item in objects], dtype=torch.bool),
        crowd=torch.tensor([item.crowd for item in objects], dtype=torch.bool),
        area=torch.where(own.isnan(), area(boxes), own),
    )
    if has_masks:
        masks = torch.zeros(len(objects), picture.height, picture.width, dtype=torch.bool)
        for index, item in enumerate(objects):
            masks[index] = torch.from_numpy(mask(item, picture.width, picture.height))
        target["masks"] = masks
    return target


def _open(split, name, classes, pictures, defects, content, inclusive):
    """The `Folder` of all pictures whose file can be read, their objects cleaned; `content` is a sha256 of the
    annotations so far."""
    usable = []
    for picture in pictures:
        try:
            measured = header(picture.file)
        except Unreadable as error:
            defects += error.defects
            continue
        defects += _settle(picture, measured)
        picture.objects, found = clean(picture.objects, picture.width, picture.height, picture.name, inclusive)
        defects += found + _check_masks(picture)
        picture.state = picture.file.stat()
        content.update(f"{picture.name} {picture.state.st_size}\n".encode(errors="replace"))
        usable.append(picture)
    defects += _missing_masks(usable, defects)
    if any(picture.id is None for picture in usable):
        for index, picture in enumerate(usable):
            picture.id = index
    content.update(repr(classes).encode(errors="replace"))
    return Folder(name, split, classes, usable, defects, content.hexdigest(), _has_masks(usable))


def _settle(picture, measured):
    """Decide the size of a picture and whether to turn it, from its header and the size its annotation states; the
    defects of that.

    EXIF's orientation is followed where the annotated size is that of the turned picture, and not otherwise: boxes were
    drawn on what their maker saw, and the size is what tells.
    """
    stored, found = (measured.width, measured.height), []
    picture.turned = measured.orientation >= 5 and stored[0] != stored[1] and picture.stated == stored[::-1]
    picture.width, picture.height = stored[::-1] if picture.turned else stored
    size = f"{picture.width}x{picture.height}"
    if measured.orientation != 1:
        found.append(
            defect(
                "turned by EXIF" if picture.turned else "EXIF not followed",
                picture.name,
                f"(orientation {measured.orientation})",
            )
        )
    if picture.stated is None:
        found.append(defect("missing size", picture.name, f"(it is {size})"))
    elif picture.stated != (picture.width, picture.height):
        found.append(
            defect("size mismatch", picture.name, "(annotated {:g}x{:g}, it is {})".format(*picture.stated, size))
        )
    if measured.mode != "RGB":
        found.append(defect("not RGB", picture.name, f"(mode {measured.mode})"))
    return found


def _check_masks(picture):
    """Check the segmentations of a picture's objects, in place; the defects of that."""
    found = []
    for index, item in enumerate(picture.objects):
        try:
            drawn = checked_segmentation(item.segmentation, picture.width, picture.height)
        except ValueError as error:
            drawn = None
            found.append(defect("malformed mask", picture.name, f"({error})", item.title))
        picture.objects[index] = item._replace(segmentation=drawn)
    return found


def _has_masks(pictures):
    return any(item.segmentation for picture in pictures for item in picture.objects)


def _missing_masks(pictures, defects):
    """Objects without a mask in a set that has masks, but for those whose mask was malformed."""
    if not _has_masks(pictures):
        return []
    malformed = {(one.file, one.object) for one in defects if one.kind == "malformed mask"}
    bare = [(picture.name, item.title) for picture in pictures for item in picture.objects if not item.segmentation]
    return [defect("missing mask", name, object=title) for name, title in bare if (name, title) not in malformed]


def check(ds):
    """Decode every image and mask of `ds`, adding to `ds.defects`; returns a table of its classes, with a last row for
    all.

    Columns: class, objects, images that have one, difficult, crowd, and the median of the boxes' sides √(w·h) in
    pixels.
    """

    def one(index):
        try:
            return ds[index][1], []
        except Unreadable as error:
            return None, error.defects

    parts = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for target, found in pool.map(one, range(len(ds))):
            ds.defects += found
            if target:
                columns = {key: target[key].tolist() for key in ("labels", "difficult", "crowd")}
                parts.append(
                    pd.DataFrame(columns | {"image": len(parts), "side": area(target["boxes"]).sqrt().tolist()})
                )
    objects = pd.concat(parts) if parts else pd.DataFrame(columns=["labels", "difficult", "crowd", "image", "side"])
    rows = []
    for name, part in [
        *((name, objects[objects.labels == label]) for label, name in enumerate(ds.classes)),
        ("all", objects),
    ]:
        counts = dict(
            objects=len(part),
            images=part.image.nunique(),
            difficult=int(part.difficult.sum()),
            crowd=int(part.crowd.sum()),
        )
        rows.append({"class": name, **counts, "median side": round(part.side.median(), 1)})
    rows[-1]["images"] = len(parts)
    return pd.DataFrame(rows)


def report(dataset, split=None, classes=None):
    """Print every defect of a data set with what is done about it, then counts and classes; returns how many defects
    there are.

    Without a split all of it: every annotation, image and list of a Pascal VOC folder, every JSON of a COCO folder.
    Raises as `load` does for a wrong path or split; a set of which nothing can be used is reported like any other.
    """
    available = splits(dataset)
    count = 0
    for name in [split] if split else available[:1] if "all" in available else available:
        try:
            ds = load(dataset, name, classes=classes)
            table, defects = check(ds).to_string(index=False), ds.defects
        except Unreadable as error:
            table, defects = "nothing of it can be used", error.defects
        _print_table(defects)
        print(f"{dataset}, split {name}: {summary(defects)}\n\n{table}\n")
        count += len(defects)
    return count


def _print_table(defects):
    rows = [
        ("file", "object", "defect", "what is done", "details"),
        *((d.file, d.object, d.kind, d.action, d.detail) for d in defects),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows if defects else []:
        print("  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[4]]).rstrip())
    print()
