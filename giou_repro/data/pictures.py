"""Image files: their headers without decoding, and their pixels as RGB."""

import functools
import os
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from giou_repro.data.annotations import utf8_name
from giou_repro.data.defects import Defect, Unreadable

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # by content, not suffix; none that runs another program
ORIENTATION = 0x0112  # EXIF's tag
END_OF_JPEG = b"\xff\xd9"
TAIL = 64  # bytes at the end of a JPEG in which its end mark is looked for
WHITES = (1, *(2**bits - 1 for bits in (8, 10, 12, 14, 16)))  # of pixels in shares and of the depths of cameras


def header(path: Path) -> tuple[int, int, str, bool, int]:
    """(stored width, stored height, colour mode, whether it has more than 8 bits, EXIF orientation or 1) of an image
    file. Raises Unreadable.

    A JPEG with its end and a PNG with sound checksums are not decoded, others are.
    """
    with _opened(path) as image:
        measured = (*image.size, image.mode, _is_deep(image), _orientation(image))
        if image.format == "PNG":
            image.verify()  # the checksums of its chunks
        elif image.format not in ("JPEG", "MPO") or not _has_end(path):
            image.load()
        return measured


def decode(path: Path, turn: bool, levels: tuple | None = None) -> np.ndarray:
    """The image as uint8 RGB (H, W, 3), turned by its EXIF orientation where `turn`. Raises Unreadable.

    levels: the values that become 0 and 255 in a file of more than 8 bits, see `levels_of`.
    """
    with _opened(path) as image:
        deep = levels and _is_deep(image)
        image = ImageOps.exif_transpose(image) if turn else image
        if not deep:
            return np.array(image.convert("RGB"))
        black, white = levels
        channels = (255 * (_values(image) - black) / (white - black)).round().clip(0, 255).astype(np.uint8)
        return np.dstack([*channels] * (3 // len(channels)))


def levels_of(paths: list[Path]) -> tuple[float, float]:
    """(black, white) that all images of more than 8 bits in a set share: 0, or the least value where one is negative;
    the least of WHITES that no value exceeds, or the largest value.

    So 12 bits in a file of 16 keep their brightness, and equal values are equal in all images.
    """
    extremes = {0.0}.union(*(_extremes(path, os.path.getmtime(path)) for path in paths if path.is_file()))
    return min(extremes), next((white for white in WHITES if max(extremes) <= white), max(extremes))


@functools.cache
def _extremes(path, time):
    """The least and the largest value of an image of more than 8 bits, read again where its time is another."""
    with suppress(Unreadable), _opened(path) as image:
        if _is_deep(image):
            values = _values(image)
            return float(values.min()), float(values.max())
    return ()


def _is_deep(image):
    """Whether an image, not decoded yet, has more than 8 bits a channel."""
    return image.mode[0] in "IF" or (image.format in ("PNG", "TIFF") and ";16" in str(image.tile))


def _values(image):
    """The values (1, H, W) or (3, H, W) of an image of more than 8 bits as its file has them; of colours Pillow reads
    the upper 8 bits."""
    if image.mode[0] in "IF":
        return np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0, neginf=0)[None]
    return np.asarray(image.convert("RGB"), dtype=np.float32).transpose(2, 0, 1) * 257


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
        raise Unreadable(Defect("unreadable image", utf8_name(path), f"({reason})")) from None


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
