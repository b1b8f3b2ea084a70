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

Opening a set reads the headers of its images, decodes none that seems whole, and repairs, drops or skips what is
defective, as `defects.ACTIONS` lists. `check` decodes everything. An image that is broken behind a sound header, or
changed since, raises `Unreadable` from `ds[i]`: a reader of a whole set catches it and goes on, so that no file ends a
training.
"""

import hashlib
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from giou_repro.boxes import area
from giou_repro.data import coco, generated, voc
from giou_repro.data.annotations import Picture
from giou_repro.data.defects import Defect, Unreadable, summary
from giou_repro.data.folder import Folder
from giou_repro.runs.files import project_folder

DOWNLOADS = {
    "voc2007": {"trainval": "2007", "test": "2007-test"},  # split → torchvision's year
    "voc2012": {"trainval": "2012"},
}
FORMATS = (voc, coco)  # each has LAYOUT, and sources(path): split → its reader, from classes to a `Folder`


def load(
    dataset: str | Path,
    split: str,
    seed: int = 0,
    images: int = 1000,
    image_size: int = 128,
    classes: tuple[str, ...] | None = None,
) -> "Folder | generated.Scenes":
    """Open a split of a data set.

    dataset: "shapes" (generated: `images` scenes of `image_size` px from `seed`; see `generated`), "voc2007" or
    "voc2012" (see `download`), a Pascal VOC folder (VOC20xx, a VOCdevkit of several, or any folder of XML files), a
    COCO JSON, or a folder of COCO JSON files, one a split. Images in files keep their own size, and all of them are
    taken. classes: the names to take, in this order; by default the VOC 20 where there is no other name, else the
    names of all annotations of the folder in alphabetical order, or COCO's categories by id.

    split: a name that `splits` lists, or a part of it in files: "train[:80%]" are the first 80 % of its images,
    "train[80%:]" the rest.

    Raises FileNotFoundError where there is no such path, ValueError for a split it does not have or a part without an
    image, and `Unreadable`, a ValueError that lists the defects, where nothing of it can be used.
    """
    if dataset == "shapes":
        return generated.Scenes(split, seed, images, image_size)
    path = _path(dataset)
    sources = _sources(path)
    name, first, last = _part(split)
    ds = _pick(sources, name, path)(classes)
    count = len(ds)
    ds.pictures = ds.pictures[round(first / 100 * count) : round(last / 100 * count)]
    if count and not len(ds):
        remedy = f"take a larger part, as {name}[:80%] or {name}[80%:]"
        raise ValueError(f"{path}: {split!r} holds none of the {count} images of {name!r}; {remedy}")
    ds.open(split)
    if not len(ds):
        about = f"{path}: no image of split {split!r} can be used; the splits are {', '.join(sources)}\n"
        raise Unreadable(*(ds.defects or [Defect("missing image", path.name, "(it lists none)")]), about=about)
    return ds


def check_splits(dataset: str | Path, *names: str) -> None:
    """Raise as `load` does for a path or split that is not there, without reading annotations."""
    for name in names:
        if dataset == "shapes":
            generated.check_split(name)
        else:
            path = _path(dataset)
            _pick(_sources(path), _part(name)[0], path)


def splits(dataset: str | Path) -> list[str]:
    """The names of the splits that `load` can open, "all" first where there is one. Raises FileNotFoundError."""
    return list(generated.STREAMS) if dataset == "shapes" else list(_sources(_path(dataset)))


def download(name: str) -> Path:
    """Fetch "voc2007" (trainval and test) or "voc2012" (trainval) by torchvision into the project's data/; returns the
    folder."""
    if name not in DOWNLOADS:
        raise ValueError(f"{name!r} cannot be downloaded; there are {', '.join(DOWNLOADS)}")
    try:
        from torchvision.datasets import VOCDetection
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"a download needs {error.name}: pip install 'giou-repro[detection]'") from None
    for split, year in DOWNLOADS[name].items():
        VOCDetection(str(project_folder() / "data"), year=year, image_set=split, download=True)
    return _downloaded(name)


def _downloaded(name):
    return project_folder() / "data" / "VOCdevkit" / name.upper()


def _path(dataset):
    path = _downloaded(dataset) if dataset in DOWNLOADS else Path(dataset)
    if not path.exists():
        formats = f"give shapes, {', '.join(DOWNLOADS)}, a Pascal VOC folder or a COCO JSON"
        remedy = f"fetch it: giou-repro data download {dataset}" if dataset in DOWNLOADS else formats
        raise FileNotFoundError(f"no data set at {path}; {remedy}")
    return path


def _sources(path):
    """split → its reader, by the first format that the path has."""
    for data_format in FORMATS:
        sources = data_format.sources(path)
        if sources:
            return sources
    raise FileNotFoundError(f"{path} holds no " + " and no ".join(data_format.LAYOUT for data_format in FORMATS))


def _part(split):
    """(name, first, last) of a split such as "train[20%:80%]", in per cent of its images; (name, 0, 100) where it is
    whole."""
    match = re.fullmatch(r"([^[]*)(?:\[(?:(\d+)%)?:(?:(\d+)%)?\])?", split)
    first, last = (int(match[2] or 0), int(match[3] or 100)) if match else (0, 0)
    if not first < last <= 100:
        raise ValueError(f"split {split!r}: a part is written as train[:80%], train[80%:] or train[20%:80%]")
    return match[1], first, last


def _pick(sources, split, path):
    """The reader of a split: of this name or, as COCO and Roboflow name them, train in train2017 and val in valid."""
    synonyms = {"val": {"val", "valid", "validation"}}.get(split, {split})
    close = [name for name in sources if synonyms & set(re.findall("[a-z]+", name.lower()))]
    if split in sources:
        return sources[split]
    if len(close) == 1:
        return sources[close[0]]
    remedy = "; name the folder of the JSON files to reach others" if path.is_file() else ""
    if split in ("train", "val") and not close:
        whole = next(iter(sources))
        remedy += f'; or divide it: train_split "{whole}[:80%]", val_split "{whole}[80%:]"'
    raise ValueError(f"{path} has no split {split!r}; it has {', '.join(close or sources)}{remedy}")


def in_both(first: list[Picture], second: list[Picture]) -> int:
    """How many of the pictures `second` are in `first` too: the same file, or another one with the same bytes."""
    sizes = {picture.state.st_size for picture in first} & {picture.state.st_size for picture in second}
    digests = {_digest(picture) for picture in first if picture.state.st_size in sizes}
    return sum(picture.state.st_size in sizes and _digest(picture) in digests for picture in second)


def _digest(picture):
    return hashlib.sha256(picture.file.read_bytes()).digest()


def check(ds: "Folder | generated.Scenes") -> pd.DataFrame:
    """Decode every image and mask of `ds`, adding to `ds.defects`; returns a table of its classes, with a last row for
    all.

    Columns: class, objects, images that have one, difficult, crowd, and the median of the boxes' sides √(w·h) in
    pixels.
    """

    def read(index):
        try:
            return ds[index][1], []
        except Unreadable as error:
            return None, error.defects

    tables = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for target, defects in pool.map(read, range(len(ds))):
            ds.defects += defects
            if target:
                table = pd.DataFrame({key: target[key].numpy() for key in ("labels", "difficult", "crowd")})
                tables.append(table.assign(image=len(tables), side=area(target["boxes"]).sqrt().tolist()))
    objects = pd.concat(tables) if tables else pd.DataFrame(columns=["labels", "difficult", "crowd", "image", "side"])
    parts = {name: objects[objects.labels == label] for label, name in enumerate(ds.classes)}
    rows = [
        {
            "class": name,
            "objects": len(part),
            "images": part.image.nunique(),
            "difficult": int(part.difficult.sum()),
            "crowd": int(part.crowd.sum()),
            "median side": round(part.side.median(), 1),
        }
        for name, part in [*parts.items(), ("all", objects)]
    ]
    rows[-1]["images"] = len(tables)
    return pd.DataFrame(rows)


def report(dataset: str | Path, split: str | None = None, classes: tuple[str, ...] | None = None) -> int:
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
    rows = [("file", "object", "defect", "what is done", "details")] if defects else []
    rows += [(defect.file, defect.object, defect.kind, defect.action, defect.detail) for defect in defects]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    print()
