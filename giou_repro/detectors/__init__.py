"""Detectors trained with any box loss: YOLOv3, and torchvision's Faster R-CNN, Mask R-CNN, RetinaNet and FCOS.

Each is a module with one contract. Training: ``losses, positives = model(images, targets)``, images float (B, 3, S, S)
in 0..1, targets a list of dicts with boxes (n, 4) xyxy pixels, labels (n,) in 0..C-1 and, for Mask R-CNN, masks (n, S,
S), n ≥ 0. `losses` are weighted scalars to be added up, the box term is "box"; `positives` hold what the box loss saw:
count, sum of IoU, number disjoint from their target. `model.divided_by` says for each loss what it is divided by:
"count" (1 where that is 0), "images", or "samples", which is then among the positives. Evaluation: ``detections =
model(images)``, a list of dicts with boxes (k, 4), scores (k,), labels (k,), and masks (k, S, S).
"""

import importlib
from typing import NamedTuple

from giou_repro.detectors.box_loss import BoxLoss
from giou_repro.registry import LOSSES, select
from giou_repro.spelling import unknown


class Family(NamedTuple):
    """The module of a detector, and the weight its box loss has by default: of a loss on boxes, of one on
    coordinates."""

    module: str
    boxes: float
    coordinates: float


DETECTORS = {
    "yolov3": Family("yolov3", boxes=5.0, coordinates=5.0),  # terms divided by positives: 5 beats 1 and 2, ℓ2 and GIoU
    "faster_rcnn": Family("rcnn", boxes=10.0, coordinates=1.0),  # the GIoU paper's
    "mask_rcnn": Family("rcnn", boxes=10.0, coordinates=1.0),
    "retinanet": Family("dense", boxes=1.0, coordinates=1.0),
    "fcos": Family("dense", boxes=1.0, coordinates=1.0),
}


def build(name: str, num_classes: int, box_loss="giou", box_weight=None, image_size=416, backbone=None):
    """The detector `name` of DETECTORS for `num_classes` classes and squares of `image_size` pixels, a multiple of 32.

    `box_loss` is a name in LOSSES, a ``module:function`` or a Loss; `box_weight` None is the family's own, see
    DETECTORS. `backbone` is a name as `backbones` explains, by default one that suits the image size. Raises ValueError
    for an unknown detector, backbone or loss, naming the closest, and for other values that cannot be.
    """
    check(name, backbone)
    if not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(f"{name} needs a whole number of classes of at least 1, got {num_classes!r}")
    if not isinstance(image_size, int) or image_size < 32 or image_size % 32:
        raise ValueError(
            f"{name}: image_size must be a multiple of 32, the coarsest stride of the backbones, got {image_size!r}"
        )
    loss = LOSSES[select([box_loss])[0]] if isinstance(box_loss, str) else box_loss
    weight = getattr(DETECTORS[name], loss.space) if box_weight is None else box_weight
    make = getattr(importlib.import_module(f"giou_repro.detectors.{DETECTORS[name].module}"), name)
    box_loss = BoxLoss(loss, weight, image_size=(image_size, image_size))
    return make(num_classes, box_loss, image_size=image_size, backbone=backbone)


def check(name: str, backbone: str | None = None) -> None:
    """Raise ValueError where there is no detector `name`, or none with this backbone; the message names the closest."""
    if name not in DETECTORS:
        raise ValueError(unknown("detector", name, DETECTORS))
    if backbone is not None and not (name == "yolov3" and backbone == "darknet53"):
        from giou_repro.detectors import backbones

        backbones.check(backbone)


def pretrained(backbone: str | None) -> bool:
    """Whether the backbone of this name, or None for a detector's own, begins with weights of an earlier training."""
    architecture, _, weights = (backbone or "tiny").partition(":")
    return weights != "none" and (bool(weights) or architecture == "efficientnet_lite0")
