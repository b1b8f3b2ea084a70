"""Data sets on disk, built for the tests: pictures, Pascal VOC folders and COCO JSON files."""

import json

import numpy as np
from PIL import Image

from giou_repro.data.defects import ACTIONS

WIDTH, HEIGHT = 60, 40


def kinds(defects):
    assert all(one.action == ACTIONS[one.kind] for one in defects)
    return [one.kind for one in defects]


def picture(path, mode="RGB", **options):
    """A noisy image of 60x40, in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path, **options)
    return path


def xml(*objects, size=(WIDTH, HEIGHT), filename=None):
    """A VOC annotation; an object is (name, xmin, ymin, xmax, ymax) and may end with its difficult flag."""
    text = "<annotation>"
    text += f"<filename>{filename}</filename>" if filename else ""
    text += f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>" if size else ""
    for name, *box in objects:
        corners = "".join(
            f"<{tag}>{value}</{tag}>" for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=False)
        )
        difficult = box[4] if len(box) > 4 else 0
        text += f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{corners}</bndbox></object>"
    return text + "</annotation>"


def voc(folder, annotations, **lists):
    """A VOC folder: id → text or bytes of its XML, each with an image; lists are splits."""
    (folder / "Annotations").mkdir(parents=True)
    for id, content in annotations.items():
        (folder / "Annotations" / f"{id}.xml").write_bytes(content if isinstance(content, bytes) else content.encode())
        picture(folder / "JPEGImages" / f"{id}.jpg")
    for split, ids in lists.items():
        (folder / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{id}\n" for id in ids))
    return folder


SOUND = ("cell", 11, 6, 30, 25)
LAUGHS = '<!DOCTYPE lolz [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>' + xml(("&b;", 1, 1, 5, 5))


def yolo(folder, texts, settings="names: [cell, dog]\ntrain: images/train\n"):
    """A YOLO folder: data.yaml, images/train, and labels/train with the lines of each id; None for no file."""
    (folder / "labels" / "train").mkdir(parents=True)
    (folder / "data.yaml").write_text(settings)
    for id, lines in texts.items():
        picture(folder / "images" / "train" / f"{id}.jpg")
        if lines is not None:
            (folder / "labels" / "train" / f"{id}.txt").write_text(lines)
    return folder


def polygon(x1, y1, x2, y2):
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


def entry(id=1, image_id=7, category_id=3, bbox=(10, 5, 20, 20), **more):
    return dict(id=id, image_id=image_id, category_id=category_id, bbox=list(bbox), iscrowd=0) | more


def coco(file, annotations, images=(), categories=((5, "dog"), (3, "cat"))):
    """A COCO JSON with image 7 beside it, and more images where given."""
    listed = [dict(id=7, file_name="seven.jpg", width=WIDTH, height=HEIGHT), *images]
    file.parent.mkdir(parents=True, exist_ok=True)
    names = [dict(id=id, name=name) for id, name in categories]
    file.write_text(json.dumps(dict(images=listed, annotations=annotations, categories=names)))
    picture(file.parent / "seven.jpg")
    return file
