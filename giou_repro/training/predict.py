"""What a trained run finds in the user's images, as COCO results."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.torch import load_file

from giou_repro import boxes, detectors, devices
from giou_repro.data.annotations import IMAGES, Picture, read_text, utf8_name
from giou_repro.data.defects import Unreadable
from giou_repro.data.folder import Folder
from giou_repro.data.pictures import decode, header
from giou_repro.runs import store
from giou_repro.training import batches, loop
from giou_repro.training.config import Config

NEEDED = ("run.json", "detections.npz", "model.safetensors")  # of a run folder
AT_ONCE = 64  # images held in memory


class Prediction(NamedTuple):
    """Of one image: its file, its pixels (H, W, 3), a dict of boxes (k, 4) xyxy in these pixels, labels (k,) and scores
    (k,), the names of all classes, and what was found as entries of COCO results."""

    file: Path
    image: np.ndarray
    detection: dict
    classes: tuple
    results: list


def load(folder: str | Path, box_loss=None) -> tuple:
    """(model, Config, class names) of a complete run of 05_train_detector, with the averaged weights its AP is of.

    `box_loss`, a BoxLoss, takes part in training alone, and need not be the run's. Raises FileNotFoundError for a
    folder that is no such run.
    """
    folder = Path(folder)
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} has no {', '.join(missing)}; name a complete run of 05_train_detector")
    given = store.Run(folder).parameters
    config = Config(**{name: value for name, value in given.items() if name in Config.model_fields})
    with np.load(folder / "detections.npz") as file:
        classes = tuple(file["classes"].tolist())
    options = dict(image_size=config.image_size, backbone=config.backbone)
    options |= {"cells_away": config.cells_away} if config.cells_away else {}
    model = detectors.DETECTORS[config.detector](len(classes), box_loss or detectors.BoxLoss("giou"), **options)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model, config, classes


def predict(folder: str | Path, paths: list, truth: str | Path | None = None) -> Iterator[Prediction]:
    """The Prediction of each image of `paths`, files and folders of files; one that cannot be read is printed and left
    out.

    Ids are those of `truth`, COCO annotations, where images are known by their file's name and classes by theirs.
    Without it an image's id is its file's name without suffix, as a number where it is one, and classes count from 1.
    An image that EXIF turns is taken upright; with a truth where that has its width and height so. Raises OSError and
    ValueError for what is not there, and an image or class that the truth does not list.
    """
    model, config, classes = load(folder)
    device = devices.resolve("auto")
    model.to(device)
    known, categories = _truth(truth, classes)
    files = _files(paths)
    unlisted = [file for file in files if truth and utf8_name(file) not in known]
    if unlisted:
        raise ValueError(f"{truth} lists no image {utf8_name(unlisted[0])!r} ({len(unlisted)} of {len(files)} images)")
    for first in range(0, len(files), AT_ONCE):
        pictures = [_picture(file, number, known) for number, file in enumerate(files[first : first + AT_ONCE])]
        opened = Folder("images", classes, pictures=list(filter(None, pictures)))
        opened.open("predict", lambda: files)
        packed = batches.pack(opened, config.image_size)
        for line in packed.skipped:
            print(line)
        for index, found in enumerate(loop.detect(model, packed, config, device) if len(packed) else ()):
            picture, found = pictures[packed.truths[index]["image_id"]], packed.original(found, index)
            image = decode(picture.file, picture.turned, picture.levels)
            stem = picture.file.stem
            id = known[picture.name]["id"] if truth else int(stem) if stem.isdecimal() else stem
            yield Prediction(picture.file, image, found, classes, _results(found, id, classes, categories))


def _truth(path, classes):
    """(name of an image's file → its entry, class → category id) of COCO annotations, or of none."""
    if path is None:
        return {}, {name: id for id, name in enumerate(classes, 1)}
    try:
        content = json.loads(read_text(Path(path), "malformed JSON")[0])
        images = {re.split(r"[/\\]", image["file_name"])[-1]: image for image in content["images"]}
        categories = {one["name"].strip(): one["id"] for one in content["categories"]}
        return images, {name: categories[name] for name in classes}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} must be COCO annotations of {', '.join(classes)}: {error!r}") from None


def _files(paths):
    """The files that paths of images and of folders name, those of a folder by name, none of the name of another."""
    files = []
    for path in map(Path, paths):
        inside = sorted(path.glob("*")) if path.is_dir() else [path]
        found = [file for file in inside if file == path or file.suffix.lower() in IMAGES]
        if not found or not found[0].is_file():
            raise FileNotFoundError(f"no image at {path}; name images, or folders with some")
        files += found
    by_name = {file.stem: file for file in files}
    twins = [file for file in files if by_name[file.stem] != file]
    if twins:
        raise ValueError(f"{twins[0]} and {by_name[twins[0].stem]} have one name, hence one id; predict them apart")
    return files


def _picture(file, number, known):
    """The Picture of a file, as large as the truth says, or as it is upright; None where it cannot be read."""
    try:
        width, height, *_, orientation = header(file)
    except Unreadable as error:
        print(error)
        return None
    entry = known.get(utf8_name(file), {})
    upright = (height, width) if orientation >= 5 else (width, height)
    return Picture(file, utf8_name(file), number, (entry.get("width", upright[0]), entry.get("height", upright[1])), [])


def _results(found, id, classes, categories):
    """Entries of COCO results: bbox is x, y, width, height, to a thousandth of a pixel; the class is named
    beside its id."""
    corners = boxes.convert(found["boxes"].double(), "xyxy", "xywh").tolist()
    rows = zip(corners, found["labels"].tolist(), found["scores"].tolist(), strict=True)
    return [
        dict(
            image_id=id,
            category_id=categories[classes[label]],
            bbox=[round(value, 3) for value in corner],
            score=score,
            category=classes[label],
        )
        for corner, label, score in rows
    ]
