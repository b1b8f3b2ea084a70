"""Average precision of two files in COCO's format, from any framework: by the rules of COCO, VOC 2007 and VOC 2010 side
by side, by IoU and by GIoU, and which rule makes the difference."""

import json
import math
from collections import Counter
from pathlib import Path

import pandas as pd

from giou_repro.data.annotations import number, read_text, utf8_name
from giou_repro.training import average_precision

OUTSIDE = 0.05  # share of an image's side by which a box may reach out of it before its format is doubted
COCO = (*average_precision.NAMES, "APs", "APm", "APl")
DIFFICULT = "difficult objects are ignored"
MANY = 0.2  # share of the boxes beyond which a doubt is told


def read(truth: str | Path, found: str | Path) -> tuple[list, list, tuple, list]:
    """(truths, detections, classes, notes) of a COCO annotation file and a COCO results file: lists of a dict an image,
    as `average_precision` takes them, and sentences on what was left out or looks wrong.

    Ids are taken as the files give them: numbers with gaps, or text. As in pycocotools, what is of a category that the
    truth does not list, and annotations of an image that it does not list, are left out, which a note tells. Raises
    OSError or ValueError, naming file and entry, for what is not in the format, and a detection in an image that the
    truth does not list.
    """
    content, entries = _json(truth), _json(found)
    if not isinstance(entries, list):
        raise ValueError(f"{found} must be COCO results: a list of image_id, category_id, bbox (x, y, w, h) and score")
    try:
        images = {image["id"]: image for image in content["images"]}
        names = {one["id"]: one["name"] for one in content["categories"]}
    except (KeyError, TypeError):
        raise ValueError(f"{truth} must be COCO annotations: images with ids, categories with ids and names") from None
    if len({isinstance(id, str) for id in images}) > 1:
        raise ValueError(f"{truth}: some ids of images are numbers and some are text")
    labels = {id: label for label, id in enumerate(sorted(names, key=lambda id: (isinstance(id, str), id)))}
    notes = []
    rows = _rows(content.get("annotations", []), utf8_name(Path(truth)), images, labels, (), notes)
    truths = [_stacked(rows.get(id, []), TRUTH) | {"image_id": id} for id in images]
    rows = _rows(entries, utf8_name(Path(found)), images, labels, ("score",), notes)
    _check_names(rows, names, images)
    notes += _doubts(rows, images)
    return truths, [_stacked(rows.get(id, []), DETECTION) for id in images], tuple(names[id] for id in labels), notes


TRUTH = {  # key → its value in an entry
    "crowd": lambda entry: entry.get("iscrowd") in (1, "1"),
    "difficult": lambda entry: entry.get("difficult", entry.get("ignore")) in (1, "1"),
    "area": lambda entry: number(entry.get("area") or math.prod(map(number, entry["bbox"][2:]))),
}
DETECTION = {"scores": lambda entry: number(entry["score"])}


def _json(path):
    try:
        return json.loads(read_text(Path(path), "malformed JSON")[0])
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None


def _rows(entries, file, images, labels, needed, notes):
    """image id → the entries of the image whose category is known, checked, each with its label. A detection's image
    has to be known, by its id or, as some frameworks have it, by its file's name without suffix."""
    stems = {Path(str(image.get("file_name"))).stem: id for id, image in images.items()}
    rows, unknown, by_file = {}, Counter(), 0
    for place, entry in enumerate(entries):
        where = f"{file}: entry {place}"
        needs = ("image_id", "category_id", "bbox", *needed)
        missing = [key for key in needs if not isinstance(entry, dict) or key not in entry]
        if missing:
            raise ValueError(f"{where} has no {', '.join(missing)}")
        box = entry["bbox"]
        numbers = [*(box if isinstance(box, list) else ()), *(entry[key] for key in needed)]
        if len(numbers) != 4 + len(needed) or not all(math.isfinite(number(value)) for value in numbers):
            raise ValueError(f"{where} must have four finite numbers in bbox, and a score if it is a detection")
        image, category = entry["image_id"], entry["category_id"]
        if image not in images and needed:
            by_file, image = by_file + 1, stems.get(str(image))
            if image is None:
                some = f"an id as {next(iter(images), None)!r} or a file's name as {next(iter(stems), None)!r}"
                raise ValueError(f"{where}: image_id {entry['image_id']!r} is none of the truth's, {some}")
        if image in images and category in labels:
            rows.setdefault(image, []).append(entry | {"label": labels[category]})
        else:
            unknown[f"category {category!r}" if image in images else f"image {image!r}"] += 1
    if unknown:
        lost, known = (", ".join(map(str, list(some)[:8])) for some in (unknown, labels))
        note = f"{file}: {unknown.total()} of {len(entries)} entries left out: the truth does not list {lost}"
        note += f"; its categories are {known}"
        if not rows:
            raise ValueError(note)
        notes.append(note)
    if by_file:
        notes.append(f"{file}: {by_file} of {len(entries)} entries name their image's file, not its id; taken by it")
    return rows


def _stacked(entries, columns):
    """One image's dict for `average_precision`."""
    boxes = [(x, y, x + w, y + h) for x, y, w, h in (map(number, entry["bbox"]) for entry in entries)]
    stacked = {key: [value(entry) for entry in entries] for key, value in columns.items()}
    return {"boxes": boxes, "labels": [entry["label"] for entry in entries]} | stacked


def _check_names(rows, names, images):
    """Raise ValueError where a detection gives its category's or its image's name, as `giou-repro predict` and
    ultralytics do, and the truth gives that id another."""
    for image, entry in ((images[id], entry) for id, entries in rows.items() for entry in entries):
        pairs = (("category", names[entry["category_id"]]), ("file_name", image.get("file_name")))
        for key, name in pairs:
            given = entry.get(key, name)
            if isinstance(given, str) and isinstance(name, str) and Path(given).name != Path(name).name:
                remedy = "give both files the same ids; giou-repro predict takes them from --truth FILE"
                raise ValueError(
                    f"{key} of {entry['image_id']}, {entry['category_id']} is {given} here, {name} there: {remedy}"
                )


def _doubts(rows, images):
    """Sentences on detections whose boxes seem to be in another format."""
    boxes = [([*map(number, entry["bbox"])], images[id]) for id, entries in rows.items() for entry in entries]
    outside = sum(
        x + w > (1 + OUTSIDE) * image.get("width", math.inf) or y + h > (1 + OUTSIDE) * image.get("height", math.inf)
        for (x, y, w, h), image in boxes
    )
    shares = sum(max(box) <= 1 for box, _ in boxes)
    notes = []
    if outside > MANY * len(boxes):
        notes.append(f"{outside} of {len(boxes)} detections reach out of their image: are they x1, y1, x2, y2?")
    if shares > MANY * len(boxes):
        notes.append(f"{shares} of {len(boxes)} detections lie within the first pixel: are they shares of the image?")
    return notes


def report(truth: str | Path, found: str | Path, per_class: bool = False) -> str:
    """The tables of `evaluate`, which rule makes the difference, and the notes, of two files."""
    *data, notes = read(truth, found)
    measures, rules, classes = evaluate(*data)
    tables = [measures, rules, *([classes] if per_class else [])]
    texts = [table.to_string(index=False, na_rep="–", float_format="{:.4f}".format) for table in tables]
    return "\n\n".join([*texts, "\n".join([describe(rules), *(f"NOTE: {note}" for note in notes)])])


def evaluate(truths, detections, classes) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """(measures, rules, classes). Measures: AP by COCO's rules and by VOC's, with IoU and with GIoU as the criterion,
    and mean IoU. Rules: the way from COCO's AP to VOC 2007's by IoU, one rule at a time. Classes: the AP of each, by
    IoU. `difficult` counts in VOC's rules alone, as in the two tools."""
    plain = [{key: value for key, value in image.items() if key != "difficult"} for image in truths]
    columns = {}
    for overlap in ("giou", "iou"):
        coco = average_precision.coco(plain, detections, classes, overlap)
        eleven, area = (average_precision.voc(truths, detections, classes, overlap, points=n) for n in (11, "all"))
        columns[overlap] = {f"COCO {name}": coco.summary[name] for name in COCO}
        columns[overlap] |= {"VOC 2007 AP": eleven.summary["AP"], "VOC 2010 AP": area.summary["AP"]}
    columns["iou"]["mean IoU"] = average_precision.mean_iou(truths, detections, classes)
    rows = [("COCO: mean over thresholds .5 to .95, 101 recalls", coco), ("threshold .5 alone: COCO's AP50", coco)]
    rows.append((_matching(detections), average_precision.voc(plain, detections, classes, points=101)))
    if any(any(image["difficult"]) for image in truths):
        rows.append((DIFFICULT, average_precision.voc(truths, detections, classes, points=101)))
    rows += [("area under the curve, no recalls: VOC 2010", area), ("11 recalls: VOC 2007", eleven)]
    rules = pd.DataFrame(dict(rule=[rule for rule, _ in rows], AP=[result.summary["AP"] for _, result in rows]))
    rules.loc[1, "AP"] = coco.summary["AP50"]
    by_class = {"COCO AP": coco, "VOC 2007 AP": eleven, "VOC 2010 AP": area}
    return (
        pd.DataFrame(columns)[["iou", "giou"]].rename_axis("measure").reset_index(),
        rules.assign(change=rules.AP.diff().round(12) + 0.0),  # no −0.0000
        pd.DataFrame({"class": classes} | {name: result.classes["AP"] for name, result in by_class.items()}),
    )


def _matching(detections):
    """VOC's way to match, and its limit of detections where that matters."""
    rule = "a detection is compared with the truth it overlaps most, taken or not"
    most = max((max(Counter(image["labels"]).values(), default=0) for image in detections), default=0)
    limit = average_precision.MAX_DETECTIONS[-1]
    return f"{rule}, and all {most} of a class in an image count, not {limit}" if most > limit else rule


def describe(table: pd.DataFrame) -> str:
    """Which rule makes the difference between COCO's AP50 and VOC 2007's AP."""
    total, parts = table.AP.iloc[-1] - table.AP.iloc[1], table.iloc[2:]
    if table.AP.isna().any():
        return "No truth counts, so there is no AP."
    if parts.change.abs().max() < 5e-4:
        return "At threshold .5 the rules of COCO and of VOC give the same AP within .0005."
    largest = parts.loc[parts.change.abs().idxmax()]
    return (
        f"At threshold .5 VOC 2007's AP is COCO's AP50 {total:+.3f}. The rule that changes it most, by "
        f"{largest.change:+.3f}: {largest.rule}."
    )
