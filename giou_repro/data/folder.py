"""A data set in files: its pictures measured and their annotations repaired when it is opened, decoded one by one."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from giou_repro.boxes import area
from giou_repro.data.annotations import Picture
from giou_repro.data.defects import Defect, Unreadable, repair_objects
from giou_repro.data.masks import apart, checked_segmentation, mask
from giou_repro.data.pictures import decode, header, levels_of
from giou_repro.data.units import boxes_in_one_corner, read_corners


@dataclass
class Folder:
    """A split of a data set in files; `datasets` describes what `ds[i]` gives.

    A format's reader fills it with annotations, `open` checks their images. inclusive: whether boxes are Pascal VOC's
    integers, see `defects.repair_objects`;  content: sha256 over the annotations, and by `open` over the images' names
    and sizes.
    """

    name: str
    classes: tuple
    inclusive: bool = False
    pictures: list = field(default_factory=list)
    defects: list = field(default_factory=list)
    content: "hashlib._Hash" = field(default_factory=hashlib.sha256, repr=False)
    split: str = ""
    has_masks: bool = False

    def __len__(self):
        return len(self.pictures)

    @property
    def checksum(self) -> str:
        return self.content.hexdigest()

    @property
    def stamp(self) -> str:
        """sha256 over the checksum, the time of each image file and how it is scaled: it identifies copies of the
        pixels."""
        read = [(picture.state.st_mtime_ns, picture.levels) for picture in self.pictures]
        return hashlib.sha256(repr((self.checksum, read)).encode()).hexdigest()

    def open(self, split: str, files: Callable) -> None:
        """Keep the pictures whose file can be read, and repair their objects.

        files: gives the files of all splits, so that images of more than 8 bits are scaled alike in each.
        """
        annotated, self.pictures, self.split = self.pictures, [], split
        for picture in annotated:
            try:
                self.defects += _measure(picture)
                self.pictures.append(picture)
            except Unreadable as error:
                self.defects += error.defects
        deep = [picture for picture in self.pictures if picture.levels]
        levels = levels_of(files()) if deep else ()
        for picture in deep:
            picture.levels = levels
            self.defects.append(Defect("more than 8 bits", picture.name, "(from {:g} to {:g})".format(*levels)))
        self.defects += [] if self.inclusive else read_corners(self.pictures, self.name)
        without_mask = []
        for picture in self.pictures:
            size = picture.width, picture.height
            picture.objects, defects = repair_objects(picture.objects, *size, picture.name, self.inclusive)
            self.defects += defects + _check_masks(picture, without_mask)
            self.content.update(f"{picture.name} {picture.state.st_size}\n".encode(errors="replace"))
        self.content.update(repr(self.classes).encode(errors="replace"))
        self.has_masks = any(item.segmentation for picture in self.pictures for item in picture.objects)
        self.defects += [*(without_mask if self.has_masks else []), *boxes_in_one_corner(self.pictures, self.name)]
        if any(picture.id is None for picture in self.pictures):
            for index, picture in enumerate(self.pictures):
                picture.id = index

    def __getitem__(self, index):
        picture = self.pictures[index]
        image = decode(picture.file, picture.turned, picture.levels)
        height, width = image.shape[:2]
        if (width, height) != (picture.width, picture.height):
            detail = f"({width}x{height} now, {picture.width}x{picture.height} when the set was opened)"
            raise Unreadable(Defect("unreadable image", picture.name, detail))
        return torch.from_numpy(image).permute(2, 0, 1).contiguous(), _target(picture, self.has_masks)


def _target(picture, has_masks):
    objects = picture.objects
    boxes = torch.tensor([item.box for item in objects], dtype=torch.float32).reshape(-1, 4)
    target = dict(
        image_id=picture.id,
        boxes=boxes,
        labels=torch.tensor([item.label for item in objects], dtype=torch.int64),
        difficult=torch.tensor([item.difficult for item in objects], dtype=torch.bool),
        crowd=torch.tensor([item.crowd for item in objects], dtype=torch.bool),
    )
    own_area = torch.tensor([math.nan if item.area is None else item.area for item in objects])
    target["area"] = torch.where(own_area.isnan(), area(boxes), own_area)
    if has_masks:
        masks = [mask(item, picture.width, picture.height) for item in objects]
        target["masks"] = torch.from_numpy(np.array(masks, dtype=bool).reshape(-1, picture.height, picture.width))
    return target


def _measure(picture: Picture) -> list[Defect]:
    """Set the state, size and orientation of a picture from its file and its annotated size; the defects of them.

    EXIF's orientation is followed only where the annotated size is that of the turned picture: that is how its
    annotator saw it.
    """
    width, height, mode, deep, orientation = header(picture.file)
    picture.state, picture.levels = picture.file.stat(), (0, 255) if deep else None
    picture.turned = orientation >= 5 and width != height and picture.stated == (height, width)
    size = picture.width, picture.height = (height, width) if picture.turned else (width, height)
    stated = all(0 < side < math.inf for side in picture.stated)
    sizes = "(annotated {:g}x{:g}, it is {}x{})".format(*picture.stated, *size)
    kinds = [
        ("turned by EXIF", picture.turned, f"(orientation {orientation})"),
        ("EXIF not followed", orientation != 1 and not picture.turned, f"(orientation {orientation})"),
        ("missing size", not stated, "(it is {}x{})".format(*size)),
        ("size mismatch", stated and picture.stated != size, sizes),
        ("not RGB", mode != "RGB" and not deep, f"(mode {mode})"),
    ]
    return [Defect(kind, picture.name, detail) for kind, applies, detail in kinds if applies]


def _check_masks(picture, missing):
    """Check the segmentations of a picture's objects, in place; the defects of those there are, others go to
    `missing`."""
    defects, size = [], (picture.width, picture.height)
    for index, item in enumerate(picture.objects):
        try:
            item = item._replace(segmentation=checked_segmentation(item.segmentation, *size))
            kind, detail = "mask apart", apart(item, *size) if item.segmentation else ""
            missing += [] if item.segmentation else [Defect("missing mask", picture.name, object=item.title)]
        except ValueError as error:
            item, kind, detail = item._replace(segmentation=None), "malformed mask", error
        picture.objects[index] = item
        defects += [Defect(kind, picture.name, f"({detail})", item.title)] if detail else []
    return defects
