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
from giou_repro.data.masks import apart, checked_segmentation, mask, other_area
from giou_repro.data.pictures import decode, header, levels_of
from giou_repro.data.units import boxes_in_one_corner, read_corners


@dataclass
class Folder:
    """A split of a data set in files; `datasets` describes what `ds[i]` gives.

    A format's reader fills it with annotations, `open` checks their images. unit: "pixels", or "inclusive" for Pascal
    VOC's, see `defects.repair_objects`, or "shares" of the image, which `open` makes pixels;  content: sha256 over the
    annotations, and by `open` over the images' names and sizes.
    """

    name: str
    classes: tuple
    unit: str = "pixels"
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
        """sha256 over the checksum, the time of each image file and how it is scaled and turned: it identifies copies
        of the pixels."""
        read = [(picture.state.st_mtime_ns, picture.levels, picture.turned) for picture in self.pictures]
        return hashlib.sha256(repr((self.checksum, read)).encode()).hexdigest()

    def open(self, split: str, files: Callable, exif: str | None = None) -> None:
        """Keep the pictures whose file can be read, and repair their objects.

        exif: "follow" or "ignore" the orientation that it names, or None, see `_measure`;  files: gives the files of
        all splits, so that images of more than 8 bits are scaled alike in each.
        """
        annotated, self.pictures, self.split = self.pictures, [], split
        for picture in annotated:
            try:
                self.defects += _measure(picture, exif)
                self.pictures.append(picture)
            except Unreadable as error:
                self.defects += error.defects
        deep = [picture for picture in self.pictures if picture.levels]
        levels = levels_of(files()) if deep else ()
        for picture in deep:
            picture.levels = levels
            self.defects.append(Defect("more than 8 bits", picture.name, "(from {:g} to {:g})".format(*levels)))
        for picture in self.pictures if self.unit == "shares" else ():
            picture.objects = [_in_pixels(item, picture.width, picture.height) for item in picture.objects]
        self.defects += read_corners(self.pictures, self.name) if self.unit == "pixels" else []
        without_mask = []
        for picture in self.pictures:
            size = picture.width, picture.height
            picture.objects, defects = repair_objects(picture.objects, *size, picture.name, self.unit)
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


def _in_pixels(item, width, height):
    """An object whose box and polygons were in shares of its image."""
    box, polygons = np.multiply(item.box, 2 * (width, height)), item.segmentation or []
    polygons = [np.multiply(polygon, len(polygon) // 2 * (width, height)).tolist() for polygon in polygons]
    return item._replace(box=tuple(box.tolist()), segmentation=polygons or None)


def _measure(picture: Picture, exif: str | None) -> list[Defect]:
    """Set the state, size and orientation of a picture from its file and its annotated size; the defects of them.

    Unless `exif` says "follow" or "ignore", EXIF's orientation is followed where the annotated size is that of the
    turned picture, which is how its annotator saw it, or where the format has no sizes.
    """
    width, height, mode, deep, orientation = header(picture.file)
    picture.state, picture.levels = picture.file.stat(), (0, 255) if deep else None
    as_stated = picture.stated is None or (orientation >= 5 and width != height and picture.stated == (height, width))
    picture.turned = orientation != 1 and {"follow": True, "ignore": False, None: as_stated}[exif]
    size = picture.width, picture.height = (height, width) if picture.turned and orientation >= 5 else (width, height)
    annotated = picture.stated or size
    stated = all(0 < side < math.inf for side in annotated)
    sizes = "(annotated {:g}x{:g}, it is {}x{})".format(*annotated, *size)
    kinds = [
        ("turned by EXIF", picture.turned, f"(orientation {orientation})"),
        ("EXIF not followed", orientation != 1 and not picture.turned, f"(orientation {orientation})"),
        ("missing size", not stated, "(it is {}x{})".format(*size)),
        ("size mismatch", stated and annotated != size, sizes),
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
        defects += [Defect(kind, picture.name, f"({detail})", item.title)] if detail else []
        if item.segmentation and (own := other_area(item)):
            detail = f"({item.area:.10g} px², its mask has {own:.10g})"
            defects.append(Defect("area not of the mask", picture.name, detail, item.title))
            item = item._replace(area=own)
        picture.objects[index] = item
    return defects
