"""Image files: their headers without decoding, and their pixels as RGB."""

import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from giou_repro.data.defects import Defect, Unreadable

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # by content, not suffix; none that runs another program
ORIENTATION = 0x0112  # EXIF's tag
END_OF_JPEG = b"\xff\xd9"
TAIL = 64  # bytes at the end of a JPEG in which its end mark is looked for


def header(path: Path) -> tuple[int, int, str, int]:
    """(stored width, stored height, colour mode, EXIF orientation or 1) of an image file. Raises Unreadable.

    A JPEG with its end and a PNG with sound checksums are not decoded, others are.
    """
    with _opened(path) as image:
        measured = (*image.size, image.mode, _orientation(image))
        if image.format == "PNG":
            image.verify()  # the checksums of its chunks
        elif image.format not in ("JPEG", "MPO") or not _has_end(path):
            image.load()
        return measured


def decode(path: Path, turn: bool) -> np.ndarray:
    """The image as uint8 RGB (H, W, 3), turned by its EXIF orientation where `turn`. Raises Unreadable."""
    with _opened(path) as image:
        return np.array(_rgb(ImageOps.exif_transpose(image) if turn else image))


@contextmanager
def _opened(path):
    """An image file, not decoded yet; what it raises becomes Unreadable: a broken file can raise anything."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise ValueError(f"{image.width}x{image.height} pixels, more than {Image.MAX_IMAGE_PIXELS}")
            yield image
    except Exception as error:
        reason = str(error).replace(f" {str(path)!r}", "") or type(error).__name__
        raise Unreadable(Defect("unreadable image", path.name, f"({reason})")) from None


def _has_end(path):
    """Whether the mark that ends a JPEG is near its end; a file cut short lacks it."""
    with open(path, "rb") as file:
        file.seek(-min(TAIL, os.path.getsize(path)), os.SEEK_END)
        return END_OF_JPEG in file.read()


def _orientation(image):
    try:
        value = image.getexif().get(ORIENTATION) if "exif" in image.info else 1
    except Exception:  # broken EXIF of a sound image
        value = 1
    return value if value in range(1, 9) else 1


def _rgb(image):
    if image.mode[0] in "IF":  # 16 or 32 bits of grey
        grey = np.asarray(image, dtype=np.float32)
        image = Image.fromarray((grey / (256 if grey.max() > 255 else 1)).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")
