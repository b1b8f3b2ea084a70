"""Detectors trained with any box loss: YOLOv3, and torchvision's Faster R-CNN, Mask R-CNN, RetinaNet and FCOS.

Each is a module with one contract. Training: ``losses, positives = model(images, targets)``, images float (B, 3, S, S)
in 0..1, targets a list of dicts with boxes (n, 4) xyxy pixels, labels (n,) in 0..C-1 and, for Mask R-CNN, masks (n, S,
S), n ≥ 0. `losses` are weighted scalars to be added up, the box term is "box"; `positives` hold what the box loss saw:
count, sum of IoU, number disjoint from their target. `model.divided_by` says for each loss what it is divided by:
"count" (1 where that is 0), "images", or "samples", which is then among the positives. Evaluation: ``detections =
model(images)``, a list of dicts with boxes (k, 4), scores (k,), labels (k,), and masks (k, S, S).
"""

from giou_repro.detectors import backbones, dense, rcnn, yolov3
from giou_repro.detectors.box_loss import BoxLoss
from giou_repro.registry import LOSSES, select
from giou_repro.spelling import unknown

DETECTORS = {
    "yolov3": yolov3.yolov3,
    "faster_rcnn": rcnn.faster_rcnn,
    "mask_rcnn": rcnn.mask_rcnn,
    "retinanet": dense.retinanet,
    "fcos": dense.fcos,
}
WEIGHTS = {  # that the box loss has by default, where it is not 1
    **{("yolov3", space): 5.0 for space in ("boxes", "coordinates")},  # 5 beats 1 and 2, for ℓ2 and GIoU
    **{(name, "boxes"): 10.0 for name in ("faster_rcnn", "mask_rcnn")},  # the GIoU paper's
}


def build(name: str, num_classes: int, box_loss="giou", box_weight=None, image_size=416, backbone=None, **options):
    """The detector `name` of DETECTORS for `num_classes` classes and squares of `image_size` pixels, a multiple of 32.

    `box_loss` is a name in LOSSES, a ``module:function`` or a Loss; `box_weight` None is that of WEIGHTS. `backbone` is
    a name as `backbones` explains, by default one that suits the image size; `options` are those of the detector's
    function, as `cells_away` of `yolov3.yolov3`. Raises ValueError for an unknown detector, backbone or loss, naming
    the closest, and for other values that cannot be.
    """
    check(name, backbone)
    if not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(f"{name} needs a whole number of classes of at least 1, got {num_classes!r}")
    if not isinstance(image_size, int) or image_size < 32 or image_size % 32:
        reason = f"image_size must be a multiple of 32, the coarsest stride of the backbones, got {image_size!r}"
        raise ValueError(f"{name}: {reason}")
    loss = LOSSES[select([box_loss])[0]] if isinstance(box_loss, str) else box_loss
    weight = WEIGHTS.get((name, loss.space), 1.0) if box_weight is None else box_weight
    box_loss = BoxLoss(loss, weight, image_size=(image_size, image_size))
    return DETECTORS[name](num_classes, box_loss, image_size=image_size, backbone=backbone, **options)


def check(name: str, backbone: str | None = None) -> None:
    """Raise ValueError where there is no detector `name`, or none with this backbone; the message names the closest."""
    if name not in DETECTORS:
        raise ValueError(unknown("detector", name, DETECTORS))
    if backbone is not None and not (name == "yolov3" and backbone == "darknet53"):
        backbones.check(backbone)


def pretrained(backbone: str | None) -> bool:
    """Whether the backbone of this name, or None for a detector's own, begins with weights of an earlier training."""
    architecture, _, weights = (backbone or "tiny").partition(":")
    return weights != "none" and (bool(weights) or architecture == "efficientnet_lite0")
