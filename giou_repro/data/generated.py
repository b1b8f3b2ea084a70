"""Generated scenes: plain shapes on cluttered ground, with masks, drawn from a seed; a data set without a download.

Circles, squares and triangles of any texture, rotation and aspect, the longer side from 8 px to half of the image. Each
class has a hue of its own on a nearly grey ground, so that a small network learns what there is in minutes, and where
it ends is what stays hard. Later shapes cover earlier ones and the border cuts some; a box is that of the visible part,
as in COCO, and a shape keeps at least 40 % of its area visible. The ground has smudges, lines and arcs, which are no
objects, and all of it has noise.
"""

import colorsys
import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import scipy.ndimage
import torch
from PIL import Image, ImageDraw, ImageFilter

CLASSES = ("circle", "square", "triangle")
STREAMS = ("train", "val", "test")
SMALLEST = 8  # px, the longer side of the whole shape
MOST = 6  # shapes in a scene
VISIBLE = 0.4  # least share of a shape that is visible
PLACES = 5  # to try for a shape before it is left out
FINE = 4  # samples a pixel and axis when a shape is drawn


@dataclass
class Scenes:
    """`images` scenes of `size` x `size` pixels; `datasets` describes what `ds[i]` gives, which draws scene i.

    Scene i depends on seed, split and size alone, not on how many there are. Raises ValueError for a split that is not
    train, val or test, a size below 32, or a number below 1.
    """

    split: str
    seed: int = 0
    images: int = 1000
    size: int = 128
    defects: list = field(default_factory=list, repr=False)
    name = "shapes"
    classes = CLASSES
    has_masks = True

    def __post_init__(self):
        check_split(self.split)
        if self.size < 4 * SMALLEST or self.images < 1:
            least = f"shapes need a size of {4 * SMALLEST} px or more and an image or more"
            raise ValueError(f"{least}, got {self.size} px and {self.images} images")

    @property
    def checksum(self) -> str:
        """sha256 of what determines the scenes: this file and the parameters."""
        return hashlib.sha256(Path(__file__).read_bytes() + repr(self).encode()).hexdigest()

    stamp = checksum  # as of sets from files

    @property
    def recipe(self) -> str:
        """The checksum but for the seed, the same for scenes that differ by their seed alone."""
        return replace(self, seed=0).checksum

    def __len__(self):
        return self.images

    def __getitem__(self, index):
        index = range(len(self))[index]
        picture, layers, labels = _scene(
            np.random.default_rng([self.seed, STREAMS.index(self.split), index]), self.size
        )
        boxes = [[x.start, y.start, x.stop, y.stop] for y, x in scipy.ndimage.find_objects(layers)]
        masks = torch.from_numpy(layers == np.arange(1, len(labels) + 1)[:, None, None])
        target = dict(
            image_id=index,
            boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            labels=torch.tensor(labels, dtype=torch.int64),
            difficult=torch.zeros(len(labels), dtype=torch.bool),
            crowd=torch.zeros(len(labels), dtype=torch.bool),
            area=masks.sum((1, 2)).float(),
            masks=masks,
        )
        return torch.from_numpy(picture).permute(2, 0, 1).contiguous(), target


def check_split(split: str) -> None:
    """Raise ValueError for a split that is not train, val or test."""
    if split not in STREAMS:
        raise ValueError(f"shapes have the splits {', '.join(STREAMS)}, not {split!r}")


def _scene(rng, size):
    """(picture uint8 (S, S, 3), layers uint8 (S, S), labels) of one scene."""
    picture = _ground(rng, size)
    layers, labels = np.zeros((size, size), dtype=np.uint8), []
    whole, visible = np.zeros(MOST + 1), np.zeros(MOST + 1)  # pixels of each shape, all and visible ones
    for _ in range(rng.integers(1, MOST + 1)):
        shape, new = rng.integers(len(CLASSES)), len(labels) + 1
        outline = _outline(rng, CLASSES[shape], SMALLEST * (size / 2 / SMALLEST) ** rng.random())
        for _ in range(PLACES):
            cover, window, full = _cover(outline + rng.uniform(0, size, 2), size)
            inside = cover >= 0.5
            left = visible - np.bincount(layers[window][inside], minlength=MOST + 1)
            left[new] = inside.sum()
            if left[new] and left[new] >= VISIBLE * full and (left >= VISIBLE * whole)[1:].all():
                layers[window][inside] = new
                picture[window] += cover[..., None] * (_paint(rng, window, CLASSES[shape]) - picture[window])
                labels.append(int(shape))
                whole[new], visible = full, left
                break
    picture += rng.uniform(2, 12) * rng.standard_normal(picture.shape, dtype=np.float32)
    return picture.clip(0, 255).astype(np.uint8), layers, labels


def _turn(angles, radii=1.0):
    return np.stack((np.cos(angles), np.sin(angles)), -1) * np.broadcast_to(radii, angles.shape)[..., None]


OUTLINES = {
    "circle": _turn(np.linspace(0, 2 * np.pi, 64, endpoint=False)),
    "square": np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]),
    "triangle": _turn(np.arange(3) * 2 * np.pi / 3),
}


def _outline(rng, shape, extent):
    """The vertices (k, 2) of a shape about the origin, stretched and turned at random; its box's longer side is
    `extent`."""
    angle = rng.uniform(0, 2 * np.pi)
    stretched = OUTLINES[shape] * (1, rng.uniform(0.4, 1))
    turned = stretched @ np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
    return turned * extent / np.ptp(turned, axis=0).max()


def _cover(outline, size):
    """(share of each pixel that an outline covers, in a window of the image; the window; the pixels that the whole of
    it covers)."""
    low = np.floor(outline.min(0)).astype(int)
    width, height = np.ceil(outline.max(0)).astype(int) - low
    canvas = Image.new("L", (int(width) * FINE, int(height) * FINE))
    ImageDraw.Draw(canvas).polygon([tuple(vertex) for vertex in (outline - low) * FINE - 0.5], fill=255)
    cover = np.asarray(canvas.reduce(FINE), dtype=np.float32) / 255
    left, top = (max(-edge, 0) for edge in low)
    inside = cover[top : size - low[1], left : size - low[0]]
    x, y = np.maximum(low, 0)
    return inside, (slice(y, y + inside.shape[0]), slice(x, x + inside.shape[1])), int((cover >= 0.5).sum())


def _paint(rng, window, shape):
    """Colours (h, w, 3) of a shape: plain, striped, spotted or shaded, in two tones of its class's hue."""
    hue = (CLASSES.index(shape) + rng.uniform(-0.25, 0.25)) / len(CLASSES)
    tones = [colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.55, 1), rng.uniform(0.45, 1)) for _ in range(2)]
    colours = 255 * np.array(tones, dtype=np.float32)
    y, x = np.mgrid[window].astype(np.float32)
    angle, wave = rng.uniform(0, np.pi), 2 * np.pi / rng.uniform(4, 16)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    textures = (
        lambda: np.zeros_like(x),
        lambda: (np.sin(along * wave) > 0).astype(np.float32),
        lambda: (np.sin(along * wave) * np.sin(across * wave) > 0.3).astype(np.float32),
        lambda: (along - along.min()) / max(np.ptp(along), 1),
    )
    mix = textures[rng.integers(4)]()
    return colours[0] + mix[..., None] * (colours[1] - colours[0])


def _ground(rng, size):
    """A ground (S, S, 3) of smooth greys with smudges, lines and arcs."""
    coarse = Image.fromarray(np.array([_grey(rng) for _ in range(16)], dtype=np.uint8).reshape(4, 4, 3))
    ground = coarse.resize((size, size), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(ground)
    for _ in range(rng.integers(0, 6)):
        draw.ellipse(_corners(rng, size), fill=_grey(rng))
    ground = ground.filter(ImageFilter.BoxBlur(size / 16))
    draw = ImageDraw.Draw(ground)
    for _ in range(rng.integers(2, 12)):
        corners, colour, width = _corners(rng, size), _grey(rng), int(rng.integers(1, 3))
        if rng.random() < 0.5:
            draw.line(corners, fill=colour, width=width)
        else:
            start = rng.uniform(0, 360)
            draw.arc(corners, start, start + rng.uniform(30, 200), fill=colour, width=width)
    return np.array(ground, dtype=np.float32)


def _corners(rng, size):
    low, extent = rng.uniform(-0.2, 0.9, 2) * size, rng.uniform(0.1, 0.5, 2) * size
    return [*low, *(low + extent)]


def _grey(rng):
    """A colour with little of it: a grey, each channel up to 20 off."""
    return tuple(int(value) for value in rng.integers(20, 236) + rng.integers(-20, 21, 3))
