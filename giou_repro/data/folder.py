"""A data set in files: its pictures measured and their annotations repaired when it is opened, decoded one by one."""

import hashlib
import math
from dataclasses import dataclass, field

import torch

from giou_repro.boxes import area
from giou_repro.data.annotations import Picture
from giou_repro.data.defects import Defect, Unreadable, repair_objects
from giou_repro.data.masks import checked_segmentation, mask
from giou_repro.data.pictures import decode, header


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
        """sha256 over the checksum and the time of each image file: it identifies copies of the pixels."""
        times = [picture.state.st_mtime_ns for picture in self.pictures]
        return hashlib.sha256(repr((self.checksum, times)).encode()).hexdigest()

    def open(self, split: str) -> None:
        """Keep the pictures whose file can be read, and repair their objects."""
        annotated, self.pictures, self.split = self.pictures, [], split
        without_mask = []
        for picture in annotated:
            try:
                self.defects += _measure(picture)
            except Unreadable as error:
                self.defects += error.defects
                continue
            size = picture.width, picture.height
            picture.objects, defects = repair_objects(picture.objects, *size, picture.name, self.inclusive)
            malformed, missing = _check_masks(picture)
            self.defects += defects + malformed
            without_mask += missing
            self.content.update(f"{picture.name} {picture.state.st_size}\n".encode(errors="replace"))
            self.pictures.append(picture)
        self.content.update(repr(self.classes).encode(errors="replace"))
        self.has_masks = any(item.segmentation for picture in self.pictures for item in picture.objects)
        self.defects += without_mask if self.has_masks else []
        if any(picture.id is None for picture in self.pictures):
            for index, picture in enumerate(self.pictures):
                picture.id = index

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
    own_area = torch.tensor([item.area for item in objects], dtype=torch.float32)
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


def _measure(picture: Picture) -> list[Defect]:
    """Set the state, size and orientation of a picture from its file and its annotated size; the defects of them.

    EXIF's orientation is followed only where the annotated size is that of the turned picture: that is how its
    annotator saw it.
    """
    width, height, mode, orientation = header(picture.file)
    picture.state = picture.file.stat()
    picture.turned = orientation >= 5 and width != height and picture.stated == (height, width)
    size = picture.width, picture.height = (height, width) if picture.turned else (width, height)
    stated = all(0 < side < math.inf for side in picture.stated)
    kinds = [
        ("turned by EXIF", picture.turned, f"(orientation {orientation})"),
        ("EXIF not followed", orientation != 1 and not picture.turned, f"(orientation {orientation})"),
        ("missing size", not stated, "(it is {}x{})".format(*size)),
        (
            "size mismatch",
            stated and picture.stated != size,
            "(annotated {:g}x{:g}, it is {}x{})".format(*picture.stated, *size),
        ),
        ("not RGB", mode != "RGB", f"(mode {mode})"),
    ]
    return [Defect(kind, picture.name, detail) for kind, applies, detail in kinds if applies]


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
