"""A data set in files: its pictures measured and their annotations repaired when it is opened, decoded one by one."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from giou_repro.boxes import area
from giou_repro.data.annotations import Annotations, Picture
from giou_repro.data.defects import Defect, Unreadable, repair_objects
from giou_repro.data.masks import checked_segmentation, mask
from giou_repro.data.pictures import decode, header


@dataclass
class Folder:
    """A split of a data set in files; `datasets` describes what `ds[i]` gives."""

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
    def stamp(self) -> str:
        """sha256 over the checksum and the time of each image file: it identifies copies of the pixels."""
        times = [picture.state.st_mtime_ns for picture in self.pictures]
        return hashlib.sha256(repr((self.checksum, times)).encode()).hexdigest()

    def __getitem__(self, index):
        picture = self.pictures[index]
        image = decode(picture.file, picture.turned)
        height, width = image.shape[:2]
        if (width, height) != (picture.width, picture.height):
            detail = f"({width}x{height} now, {picture.width}x{picture.height} when the set was opened)"
            raise Unreadable(Defect("unreadable image", picture.name, detail))
        return torch.from_numpy(image).permute(2, 0, 1).contiguous(), _target(picture, self.has_masks)


def _target(picture, has_masks):
    objects = picture.objects
    boxes = torch.tensor([item.box for item in objects], dtype=torch.float32).reshape(-1, 4)
    own_area = torch.tensor([np.nan if item.area is None else item.area for item in objects], dtype=torch.float32)
    target = dict(
        image_id=picture.id,
        boxes=boxes,
        labels=torch.tensor([item.label for item in objects], dtype=torch.int64),
        difficult=torch.tensor([item.difficult for item in objects], dtype=torch.bool),
        crowd=torch.tensor([item.crowd for item in objects], dtype=torch.bool),
        area=torch.where(own_area.isnan(), area(boxes), own_area),
    )
    if has_masks:
        target["masks"] = torch.zeros(len(objects), picture.height, picture.width, dtype=torch.bool)
        for index, item in enumerate(objects):
            target["masks"][index] = torch.from_numpy(mask(item, picture.width, picture.height))
    return target


def open_folder(split: str, annotations: Annotations) -> Folder:
    """The data set of all pictures whose file can be read, their objects repaired; it goes on with `annotations`'
    defects and sha256."""
    pictures, defects, without_mask = [], annotations.defects, []
    for picture in annotations.pictures:
        try:
            defects += _measure(picture)
        except Unreadable as error:
            defects += error.defects
            continue
        size = picture.width, picture.height
        picture.objects, repairs = repair_objects(picture.objects, *size, picture.name, annotations.inclusive)
        malformed, missing = _check_masks(picture)
        defects += repairs + malformed
        without_mask += missing
        annotations.content.update(f"{picture.name} {picture.state.st_size}\n".encode(errors="replace"))
        pictures.append(picture)
    has_masks = any(item.segmentation for picture in pictures for item in picture.objects)
    defects += without_mask if has_masks else []
    if any(picture.id is None for picture in pictures):
        for index, picture in enumerate(pictures):
            picture.id = index
    annotations.content.update(repr(annotations.classes).encode(errors="replace"))
    checksum = annotations.content.hexdigest()
    return Folder(annotations.name, split, annotations.classes, pictures, defects, checksum, has_masks)


def _measure(picture: Picture):
    """Set the state, size and orientation of a picture from its file and its annotated size; the defects of them.

    EXIF's orientation is followed only where the annotated size is that of the turned picture: that is how its
    annotator saw it.
    """
    width, height, mode, orientation = header(picture.file)
    picture.state = picture.file.stat()
    picture.turned = orientation >= 5 and width != height and picture.stated == (height, width)
    picture.width, picture.height = (height, width) if picture.turned else (width, height)
    size = f"{picture.width}x{picture.height}"
    kinds = {}
    if orientation != 1:
        kinds["turned by EXIF" if picture.turned else "EXIF not followed"] = f"(orientation {orientation})"
    if picture.stated is None:
        kinds["missing size"] = f"(it is {size})"
    elif picture.stated != (picture.width, picture.height):
        kinds["size mismatch"] = "(annotated {:g}x{:g}, it is {})".format(*picture.stated, size)
    if mode != "RGB":
        kinds["not RGB"] = f"(mode {mode})"
    return [Defect(kind, picture.name, detail) for kind, detail in kinds.items()]


def _check_masks(picture):
    """Check the segmentations of a picture's objects, in place; (defects of malformed, of missing ones)."""
    malformed, missing = [], []
    for index, item in enumerate(picture.objects):
        segmentation = None
        try:
            segmentation = checked_segmentation(item.segmentation, picture.width, picture.height)
            if not segmentation:
                missing.append(Defect("missing mask", picture.name, object=item.title))
        except ValueError as error:
            malformed.append(Defect("malformed mask", picture.name, f"({error})", item.title))
        picture.objects[index] = item._replace(segmentation=segmentation)
    return malformed, missing
