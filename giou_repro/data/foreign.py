"""Formats of annotations that are not read: told by their files, with what to do."""

import itertools
import re
from pathlib import Path

from giou_repro.data.annotations import files_below

MOST_FILES = 200  # of each suffix that are looked at
HEAD = 20_000  # bytes of each
COCO = "convert it to a COCO JSON"
NUMBER = r"-?\d+(\.\d+)?(e-?\d+)?"
FORMATS = (  # name, suffix of its files, what each has in its text, what to do
    ("CVAT XML", ".xml", r"<annotations>.*<image\s", "export it from CVAT as COCO 1.0 or Pascal VOC 1.1"),
    ("labelme JSON", ".json", r'"shapes"\s*:\s*\[', f"{COCO}, as labelme2coco does"),
    ("VGG Image Annotator JSON", ".json", r'"shape_attributes"\s*:', "export it as COCO format"),
    ("Label Studio JSON", ".json", r'"rectanglelabels"', "export it from Label Studio as COCO or Pascal VOC"),
    ("CreateML JSON", ".json", r'"coordinates"\s*:\s*{', COCO),
    ("Supervisely JSON", ".json", r'"classTitle"', "export it from Supervisely as COCO or Pascal VOC"),
    ("COCO results", ".json", r'^\s*\[\s*{[^{}]*"score"', "give the JSON with the images and the annotations"),
    ("YOLO text", ".txt", rf"(?m)^\d+( {NUMBER}){{4,}}\s*$", "write a data.yaml with names: and train:"),
    ("KITTI text", ".txt", rf"(?m)^[A-Za-z_]+( {NUMBER}){{14,}}\s*$", COCO),
    ("a table", ".csv", r",", f"{COCO}, a row an annotation"),
    ("TFRecord", ".tfrecord", r"", COCO),
)
LAYOUTS = (
    ("Pascal VOC in another layout", ".xml", r"<annotation[\s>]", "put the XML files into Annotations/"),
    ("COCO in another layout", ".json", r'"(images|annotations|categories)"\s*:\s*\[\s*{', "name the JSON itself"),
)


def recognise(path: Path, formats: tuple = FORMATS) -> str:
    """What a path that cannot be read seems to hold, and what to do; "" where that is not known."""
    files = [path] if path.is_file() else files_below(path)
    for name, suffix, pattern, remedy in formats:
        own = (file for file in files if file.suffix.lower().replace(".yml", ".yaml") == suffix)
        for file in itertools.islice(own, MOST_FILES):
            with open(file, "rb") as content:
                if re.search(pattern, content.read(HEAD).decode("latin-1"), re.DOTALL):
                    return f"{file} seems to be {name}, which is not read: {remedy}"
    return ""
