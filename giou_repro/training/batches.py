"""Images made ready once, batches made on the device: what keeps a processor or a GPU from waiting for files.

`pack` reads a data set once, resizes every image into a square (ratio kept, grey padding) of bytes, and keeps the
squares: on a GPU where they take less than half of its free memory, else in a file that is mapped, and which stays in
`cache_folder` for the next training. `augmented_batches` draws seeded batches from them and augments them on the
device; `FrozenFeatures` gives what a frozen backbone made of them.
"""

import fcntl
import hashlib
import io
import json
import math
import os
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as images_of
from tqdm.auto import tqdm

from giou_repro.data.defects import Unreadable
from giou_repro.runs import store

CACHE_VERSION = 2  # to be raised when the format of what is kept, or the way to it from an image, changes
SCENES_KEPT = 50_000_000  # bytes of squares of a generated set that are kept: more would fill disks, seed by seed
GREY = 114  # the padding of letterboxed images, as Darknet's descendants have it
LEAST_VISIBLE = 0.2  # a box with less than this share of its area left in the augmented image is dropped
LEAST_SIDE = 2  # pixels; a box that has less left is dropped too


@dataclass
class Packed:
    """Squares uint8 (N, 3, S, S); for each, its truth (boxes in pixels of the square), and how it lies in its image:
    (scale, left, top)."""

    images: torch.Tensor
    truths: list
    places: torch.Tensor
    sizes: torch.Tensor  # (N, 2) height, width of the images as they are
    skipped: list  # why each image that could not be read was left out

    def __len__(self):
        return len(self.truths)

    def original(self, detection, index):
        """A detection or truth of square `index`, in pixels of the image as it is, clipped to it."""
        scale, left, top = self.places[index].tolist()
        height, width = self.sizes[index].tolist()
        boxes = (detection["boxes"].cpu() - torch.tensor([left, top, left, top])) / scale
        return {**detection, "boxes": boxes.clamp(min=0).minimum(torch.tensor([width, height, width, height]))}


def cache_folder():
    """Where squares are kept from one training to the next: $GIOU_REPRO_CACHE, or data/cache of the project."""
    return Path(os.environ.get("GIOU_REPRO_CACHE") or store.project_folder() / "data" / "cache")


def pack(dataset, size, masks=False, limit=None, cache=None, device="cpu"):
    """Letterbox every image of `dataset`, or the first `limit`, to `size` × `size`; returns Packed.

    cache: a folder; the squares are kept there as bytes, named by what they are of, and reused; of generated scenes no
    more than SCENES_KEPT. Where it cannot be written, or its disk is full, the squares are held in memory. An image
    that cannot be read is left out and named in `skipped`.
    """
    count = min(limit or len(dataset), len(dataset))
    drawn = dataset.name == "shapes" and 3 * count * size**2 > SCENES_KEPT
    kept = None if cache is None or drawn else _cached(Path(cache), dataset, count, size, masks)
    if kept is None:
        images = np.empty((count, 3, size, size), np.uint8)
        kept = images, _fill(images, dataset, size, masks)
    images, rest = kept
    images = torch.from_numpy(images)[: len(rest["truths"])]
    device = torch.device(device)
    fits = device.type == "cuda" and images.nbytes < torch.cuda.mem_get_info(device)[0] / 2
    return Packed(images.to(device) if fits else images, **rest)


def _cached(cache, dataset, count, size, masks):
    """(squares, the rest) of a data set, from its folder in `cache`, which is made where it is missing or damaged.

    None where the folder cannot be made."""
    key = json.dumps([CACHE_VERSION, dataset.stamp, dataset.split, size, masks, count])
    folder = cache / f"{dataset.name}-{dataset.split}-{size}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    shape = (count, 3, size, size)
    try:
        if kept := _kept(folder, shape):
            return kept
        cache.mkdir(parents=True, exist_ok=True)
        with open(cache / ".lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one process writes at a time: what is half-written is a dead one's
            for half in cache.glob("*/images.npy"):
                if not (half.parent / "truths.pt").exists():
                    shutil.rmtree(half.parent)
            if not _kept(folder, shape):
                _make(folder, dataset, shape, masks)
        return _kept(folder, shape)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        needed = f"{math.prod(shape) / 1e6:.1f} MB needed"
        remedy = "images are held in memory. GIOU_REPRO_CACHE names another folder"
        print(f"{cache} cannot be written ({error.strerror}; {needed}): {remedy}")
        return None


def _kept(folder, shape):
    """(squares, a mapped file; the rest) that a folder holds; None where it does not, or is damaged."""
    try:
        images = np.load(folder / "images.npy", mmap_mode="c")
        rest = torch.load(folder / "truths.pt", weights_only=True)
        count = len(rest["truths"]) + len(rest["skipped"])
        whole = (images.shape, images.dtype, count) == (shape, np.uint8, shape[0])
    except Exception:  # a damaged file can raise anything
        return None
    return (images, rest) if whole else None


def _make(folder, dataset, shape, masks):
    """Fill a folder of the cache; it is whole once it has truths.pt. Raises OSError on a full disk."""
    print(f"caching {shape[0]} images of {shape[2]}x{shape[3]} px, {math.prod(shape) / 1e6:.1f} MB, in {folder}")
    shutil.rmtree(folder, ignore_errors=True)  # damaged
    folder.mkdir()
    images = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
    with open(folder / "images.npy", "r+b") as file:  # space first: a mapped file on a full disk ends the process
        os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    rest = io.BytesIO()
    torch.save(_fill(images, dataset, shape[-1], masks), rest)
    images.flush()
    store.write_atomic(folder / "truths.pt", rest.getvalue())


def _fill(images, dataset, size, masks):
    rest = {"truths": [], "places": [], "sizes": [], "skipped": []}
    for index in tqdm(range(len(images)), desc=f"{dataset.name} {dataset.split}: reading", disable=None, leave=False):
        try:
            image, truth = dataset[index]
        except Unreadable as error:
            rest["skipped"].append(str(error))
            continue
        square, place = letterbox(image, size)
        images[len(rest["truths"])] = square.numpy()
        rest["truths"].append(_squared(truth, place, size, masks))
        rest["places"].append(place)
        rest["sizes"].append(image.shape[1:])
    return rest | {"places": torch.tensor(rest["places"]).view(-1, 3), "sizes": torch.tensor(rest["sizes"]).view(-1, 2)}


def letterbox(image, size, fill=GREY, **how):
    """(C, H, W) → ((C, size, size), (scale, left, top)): resized with its ratio kept, centred on `fill`; `how` are
    options of torchvision's resize."""
    height, width = image.shape[1:]
    scale = size / max(height, width)
    new_height, new_width = max(round(height * scale), 1), max(round(width * scale), 1)
    top, left = (size - new_height) // 2, (size - new_width) // 2
    resized = images_of.resize(image, [new_height, new_width], antialias=True, **how)
    border = [left, top, size - new_width - left, size - new_height - top]
    return images_of.pad(resized, border, fill=fill), (scale, float(left), float(top))


def _squared(truth, place, size, masks):
    scale, left, top = place
    kept = {key: truth[key] for key in ("image_id", "labels", "difficult", "crowd", "area")}
    kept["boxes"] = truth["boxes"] * scale + torch.tensor([left, top, left, top])
    if masks:
        square, _ = letterbox(truth["masks"].byte(), size, fill=0, interpolation=InterpolationMode.NEAREST)
        kept["masks"] = torch.from_numpy(np.packbits(square.numpy(), -1))
    return kept


def training_truth(truth):
    """What a detector is trained on: crowds and difficult objects are left out, as the paper does."""
    keep = ~(truth["difficult"] | truth["crowd"])
    return {key: truth[key][keep] for key in ("boxes", "labels", "masks") if key in truth}


def batch(packed, indices, device, augment=None):
    """Squares `indices` as floats (B, 3, S, S) in 0..1 and their training truths, augmented by the generator `augment`
    where one is given."""
    images = packed.images[indices.to(packed.images.device)].to(device, non_blocking=True).float().div_(255)
    targets = [training_truth(packed.truths[index]) for index in indices.tolist()]
    for target in targets:
        if "masks" in target:
            bits = np.unpackbits(target["masks"].numpy(), -1, count=images.shape[-1])
            target["masks"] = torch.from_numpy(bits).bool()
    if augment is not None:
        images, targets = augmented(images, targets, augment)
    targets = [{key: value.to(device, non_blocking=True) for key, value in target.items()} for target in targets]
    return images.contiguous(memory_format=torch.channels_last), targets


def augmented_batches(packed, device, augment, seed, rank):
    """epoch → the function from indices to (images, targets) of `packed`, augmented anew in every epoch."""

    def epoch(number):
        generator = torch.Generator().manual_seed(mixed_seed(seed, number, rank, 1)) if augment else None
        return partial(batch, packed, device=device, augment=generator)

    return epoch


class FrozenFeatures:
    """Batches of the features that a frozen backbone has of a Packed: of `views` augmented views of every square, each
    computed once. Epochs take the views in turn.

    `backbone` maps images (B, 3, S, S) to a list of features (B, C, h, w), which come back in its dtype.
    """

    def __init__(self, packed, device, augment, seed, views, backbone):
        self.packed, self.device, self.augment, self.seed, self.backbone = packed, device, augment, seed, backbone
        self.views = [None] * views

    def __call__(self, number):
        """The function from indices to (features, targets) of epoch `number`."""
        view = number % len(self.views)
        self.views[view] = self.views[view] or self._view(view)
        features, targets = self.views[view]
        return lambda indices: (
            [level[indices].permute(0, 3, 1, 2) for level in features],
            [targets[index] for index in indices.tolist()],
        )

    def _view(self, number):
        """(features of every square, (N, h, w, C) each, targets) of one view.

        All that stays is allocated beforehand: small pieces between the large ones that come and go would keep the C
        library from using the memory of those again, gigabytes of it.
        """
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, number, 2)) if self.augment else None
        count, most = len(self.packed), max(len(truth["labels"]) for truth in self.packed.truths)
        boxes, labels = torch.zeros(count, most, 4), torch.zeros(count, most, dtype=torch.int64)
        features, objects = None, []
        parts = torch.arange(count).split(32)
        for indices in tqdm(parts, desc=f"features, view {number + 1}", disable=None, leave=False):
            images, targets = batch(self.packed, indices, self.device, generator)
            levels = [level.permute(0, 2, 3, 1) for level in self.backbone(images)]  # (B, h, w, C)
            features = features or [level.new_empty(count, *level.shape[1:]) for level in levels]
            for kept, level in zip(features, levels, strict=True):
                kept[indices] = level
            for index, target in zip(indices, targets, strict=True):
                objects.append(len(target["labels"]))
                boxes[index, : objects[-1]], labels[index, : objects[-1]] = target["boxes"], target["labels"]
        rows = zip(boxes.to(self.device), labels.to(self.device), objects, strict=True)
        return features, [{"boxes": own[:n], "labels": names[:n]} for own, names, n in rows]


def augmented(images, targets, generator, scale=(0.7, 1.4), shift=0.2, colour=0.3):
    """Flip, zoom, move and recolour each image (B, 3, S, S), its boxes and masks with it. Draws from `generator`, a CPU
    one, so that seeds agree."""
    count, size = len(images), images.shape[-1]
    draw = torch.rand(8, count, generator=generator)
    smallest, largest = torch.tensor(scale).log()
    zoom = (smallest + draw[0] * (largest - smallest)).exp()
    flip = (draw[1] < 0.5).float() * -2 + 1
    moves = (draw[2:4] * 2 - 1) * shift
    # a point p of the square (centre 0, half side 1) goes to (zoom · flip · p) + 2 · move
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = flip / zoom, 1 / zoom
    theta[:, 0, 2], theta[:, 1, 2] = -2 * moves[0] * flip / zoom, -2 * moves[1] / zoom
    grid = functional.affine_grid(theta.to(images.device), list(images.shape), align_corners=False)
    grey = GREY / 255
    moved = functional.grid_sample(images - grey, grid, align_corners=False) + grey
    gain = ((draw[4:7] * 2 - 1) * colour).exp().T[:, :, None, None].to(images.device)
    common = ((draw[7] * 2 - 1) * colour).to(images.device)[:, None, None, None]
    moved = (moved * gain.pow(0.5) + common * 0.5).clamp_(0, 1)
    placements = zip(targets, grid, zoom, flip, moves.T * size, strict=True)
    return moved, [_moved(*placement, size) for placement in placements]


def _moved(target, grid, zoom, flip, move, size):
    """A target whose image was zoomed and flipped about its centre, then moved by `move` pixels: boxes are clipped, and
    dropped where little is left."""
    factors = zoom * torch.stack([flip, torch.ones(())])
    corners = (target["boxes"].view(-1, 2, 2) - size / 2) * factors  # (n, corner, xy)
    full = (corners.sort(1).values + move + size / 2).flatten(1)
    clipped = full.clamp(0, size)
    sides = clipped[:, 2:] - clipped[:, :2]
    visible = sides.prod(1) >= LEAST_VISIBLE * (full[:, 2:] - full[:, :2]).prod(1)
    keep = visible & (sides.amin(1) >= LEAST_SIDE)
    kept = {"boxes": clipped[keep], "labels": target["labels"][keep]}
    if "masks" in target:
        masks = target["masks"][keep].float().to(grid.device)
        kept["masks"] = functional.grid_sample(masks[None], grid[None], mode="nearest", align_corners=False)[0] > 0.5
    return kept


def mixed_seed(*numbers):
    """One seed from several whole numbers, so that (seed 0, epoch 1) and (seed 1, epoch 0) draw differently."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def order(count, batch_size, seed, epoch):
    """The batches of an epoch: a list of index tensors, every image once; a last short batch is kept unless it is the
    smaller part of one."""
    generator = torch.Generator().manual_seed(mixed_seed(seed, epoch))
    shuffled = torch.randperm(count, generator=generator)
    batches = list(shuffled.split(batch_size))
    last = len(batches[-1])
    short = last * 2 < batch_size or last == 1 < batch_size  # one alone has no statistics to normalise by
    return batches[:-1] if len(batches) > 1 and short else batches
