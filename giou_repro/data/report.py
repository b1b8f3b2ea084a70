"""What `giou-repro data check` prints: every defect of a data set, and its classes in numbers."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from giou_repro.boxes import area
from giou_repro.data import voc
from giou_repro.data.datasets import Source, load, splits
from giou_repro.data.defects import LOST, Defect, Unreadable, summary
from giou_repro.data.files import compare
from giou_repro.data.folder import Folder
from giou_repro.data.generated import Scenes

ONLY_KEPT = 3  # the exit status where there are defects, and nothing is lost by them


def check(ds: Folder | Scenes) -> pd.DataFrame:
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

    rows, images = [], 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for target, defects in pool.map(read, range(len(ds))):
            ds.defects += defects
            if target:
                columns = *(target[key] for key in ("labels", "difficult", "crowd")), area(target["boxes"]).sqrt()
                rows += [(images, *row) for row in zip(*(column.tolist() for column in columns), strict=True)]
                images += 1
    objects = pd.DataFrame(rows, columns=["image", "label", "difficult", "crowd", "side"])
    parts = [(name, objects[objects.label == label]) for label, name in enumerate(ds.classes)] + [("all", objects)]
    table = pd.DataFrame(
        {
            "class": name,
            "objects": len(part),
            "images": part.image.nunique(),
            "difficult": int(part.difficult.sum()),
            "crowd": int(part.crowd.sum()),
            "median side": round(part.side.median(), 1),
        }
        for name, part in parts
    )
    table.loc[table.index[-1], "images"] = images
    return table


def report(
    dataset: str | Path,
    split: str | None = None,
    classes: tuple[str, ...] | None = None,
    exif: str | None = None,
    background: bool = False,
) -> int:
    """Print every defect of a data set with what is done about it, then counts and classes; returns the exit status: 0
    where there is no defect, 1 where something is lost, ONLY_KEPT where all is taken as it is or converted.

    Without a split all of it: every annotation, image and list of a Pascal VOC folder, every JSON of a COCO folder, and
    what its splits have in common. exif, background: see `load`. Raises as `load` does for a wrong path or split; a set
    of which nothing can be used is reported like any other.
    """
    source = None if dataset == "shapes" else Source(dataset, exif, background)
    available, defects, opened = splits(dataset), [], {}
    in_one = source and (source.format is voc or (source.path.is_file() and "all" in available))  # the first split
    for name in [split] if split else available[:1] if in_one else available:
        try:
            ds = opened[name] = source.open(name, classes) if source else load(dataset, name)
            table, own = check(ds).to_string(index=False), ds.defects
        except Unreadable as error:
            table, own = "nothing of it can be used", error.defects
        _print_table(own)
        print(f"{dataset}, split {name}: {summary(own)}\n\n{table}\n")
        defects += own
    if source and not split:
        between = compare({name: _pictures(source, name, opened) for name in available if name != "all"})
        _print_table(between)
        print(f"{dataset}, its splits: {summary(between)}\n")
        defects += between
    return int(any(defect.action in LOST for defect in defects)) or (ONLY_KEPT if defects else 0)


def _pictures(source, split, opened):
    try:
        return (opened.get(split) or source.readers[split](background=source.background)).pictures
    except Unreadable:  # which is reported already
        return []


def _print_table(defects: list[Defect]):
    rows = [("file", "object", "defect", "what is done", "details")] if defects else []
    rows += [(defect.file, defect.object, defect.kind, defect.action, defect.detail) for defect in defects]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    print()
