"""The losses inside other frameworks: torchvision's detectors, ultralytics' YOLO, transformers' DETR family.

    with plug.ultralytics("giou"):
        YOLO("yolo11n.yaml").train(data="my.yaml")

Each function takes effect where it is called, for every model of the framework in this process, and returns a `Plug`,
which puts the framework's own loss back at the end of its ``with`` block, or by `remove()`; without either the loss
stays. `loss` is a name in LOSSES, a ``module:function`` of the user, a function (pred, target) of xyxy boxes (n, 4), or
a `Loss`; `weight`, above 0, multiplies it. All three raise ValueError for an unknown loss or weight, TypeError for
something that is no loss, RuntimeError where the framework's version lacks what is to be exchanged. Frameworks come
with the extra ``plug``.
"""

import functools
import importlib.metadata
import inspect
import sys

import torch

from giou_repro import boxes
from giou_repro.registry import LOSSES, Loss

try:
    from giou_repro.detectors.box_loss import BoxLoss
    from giou_repro.detectors.dense import positive_boxes
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"plugs need {error.name}: pip install 'giou-repro[plug]'") from None


class Plug:
    """What a function of this module has exchanged in a framework; `remove` puts it back, as does the end of a ``with``
    block."""

    def __init__(self, framework, *changes):
        """`changes` are (owner, name, value): attributes of modules or classes, exchanged at once."""
        for owner, name, value in changes:
            if name not in vars(owner) or _arguments(vars(owner)[name]) != _arguments(value):
                reason = f"has no {owner.__name__}.{name} of {_arguments(value)} arguments"
                version = f"{framework} {importlib.metadata.version(framework)}"
                raise RuntimeError(f"{version} {reason}; pip install 'giou-repro[plug]' brings a version that has")
        self._changes = [(owner, name, vars(owner)[name], value) for owner, name, value in changes]
        for owner, name, value in changes:
            setattr(owner, name, value)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.remove()

    def remove(self):
        """Put the framework's own back; nothing where that is done. RuntimeError where a later plug is still in."""
        if any(vars(owner)[name] is not value for owner, name, _, value in self._changes):
            raise RuntimeError("the framework was changed after this plug; remove the last plug first")
        for owner, name, own, _ in self._changes:
            setattr(owner, name, own)
        self._changes = []


def torchvision(loss, weight: float = 1.0) -> Plug:
    """Faster, Mask and Keypoint R-CNN, RetinaNet, FCOS and SSD: the loss of the final boxes; proposals keep theirs.

    A "boxes" loss is given decoded boxes in pixels of the resized image, a "coordinates" loss what the detector
    regresses. torchvision divides the sum as before.
    """
    from torchvision.models.detection import fcos, retinanet, roi_heads, ssd

    term, heads = _box_loss(loss, weight), (fcos.FCOSHead, retinanet.RetinaNetHead, ssd.SSD)

    def dense(compute_loss):
        @functools.wraps(compute_loss)
        def plugged(self, targets, outputs, anchors, matched):
            deltas, points, truth, image = positive_boxes(targets, outputs["bbox_regression"], anchors, matched)
            coder = self.box_coder if hasattr(self, "box_coder") else self.regression_head.box_coder
            if hasattr(coder, "encode_single"):
                encoded, decoded = coder.encode_single(truth, points), coder.decode_single(deltas, points)
            else:
                encoded, decoded = coder.encode(points, truth), coder.decode(deltas, points)
            losses, _ = term(deltas, encoded, decoded, truth)
            if isinstance(self, retinanet.RetinaNetHead):  # each image counts alike
                value = (losses / image.bincount(minlength=1)[image]).sum() / len(targets)
            else:
                value = losses.sum() / max(1, len(losses))
            return compute_loss(self, targets, outputs, anchors, matched) | {"bbox_regression": value}

        return plugged

    select, fastrcnn_loss = roi_heads.RoIHeads.select_training_samples, roi_heads.fastrcnn_loss

    @functools.wraps(select)
    def select_training_samples(self, proposals, targets):
        proposals, matched, labels, encoded = select(self, proposals, targets)
        encoded = _Encoded(encoded)
        encoded.box_coder, encoded.proposals = self.box_coder, torch.cat(proposals)
        return proposals, matched, labels, encoded

    @functools.wraps(fastrcnn_loss)
    def plugged(logits, deltas, labels, encoded):
        classification, _ = fastrcnn_loss(logits, deltas, labels, encoded)
        coder, proposals, labels, encoded = encoded.box_coder, encoded.proposals, torch.cat(labels), torch.cat(encoded)
        positive = torch.where(labels > 0)[0]
        deltas, encoded = deltas.view(len(labels), -1, 4)[positive, labels[positive]], encoded[positive]
        decoded, truth = (coder.decode_single(part, proposals[positive]) for part in (deltas, encoded))
        return classification, term(deltas, encoded, decoded, truth)[0].sum() / len(labels)

    return Plug(
        "torchvision",
        *((owner, "compute_loss", dense(owner.compute_loss)) for owner in heads),
        (roi_heads.RoIHeads, "select_training_samples", select_training_samples),
        (roi_heads, "fastrcnn_loss", plugged),
    )


def ultralytics(loss, weight: float = 1.0) -> Plug:
    """YOLO for boxes, masks and keypoints: its box term, otherwise CIoU. The assigner, the distances' term (DFL or ℓ1),
    oriented boxes and RT-DETR keep theirs.

    A "boxes" loss is given boxes in pixels of the training image, and its `image_size` where it takes one; a
    "coordinates" loss boxes in cells of the level, so that differences are those of the distances that are regressed.
    ultralytics starts several GPUs as processes of their own, in which this plug is not.
    """
    from ultralytics.utils.loss import BboxLoss

    term, forward = _box_loss(loss, weight), BboxLoss.forward

    @functools.wraps(forward)
    def plugged(self, dist, pred, points, target, scores, scores_sum, foreground, imgsz, stride):
        _, distances = forward(self, dist, pred, points, target, scores, scores_sum, foreground, imgsz, stride)
        stride = stride.expand(len(pred), -1, -1)[foreground]  # (n, 1)
        pred, target = pred[foreground], target[foreground]
        sized = BoxLoss(term.loss, term.weight, image_size=(imgsz[1], imgsz[0]))
        losses, _ = sized(pred, target, pred * stride, target * stride)
        return (losses * scores[foreground].sum(-1)).sum() / scores_sum, distances

    return Plug("ultralytics", (BboxLoss, "forward", plugged))


def detr(loss, weight: float = 1.0, image_size: tuple[float, float] = (1, 1)) -> Plug:
    """transformers' DETR, Deformable, Conditional, DAB-, RT-, LW- and RF-DETR, D-FINE, YOLOS, Grounding DINO and so on:
    in place of GIoU, in the loss and in the matcher's cost alike. ℓ1 and the weights stay the config's.

    A "boxes" loss is given boxes in shares of the image's sides times `image_size` (width, height), which makes them
    pixels for a loss that depends on the unit; a "coordinates" loss normalised (cx, cy, w, h).
    """
    from transformers.loss import loss_utils  # imports every family's

    if not isinstance(image_size, tuple | list) or len(image_size) != 2 or not min(image_size) > 0:
        raise ValueError(f"image_size must be (width, height) above 0, got {image_size!r}")

    term = _box_loss(loss, weight, image_size=image_size)

    def similarity(pred, target):
        """1 − loss of each pair of xyxy boxes (N, 4) and (M, 4), (N, M), as GIoU is 1 − its loss."""
        if torch.is_grad_enabled():  # of the loss, which takes the diagonal; the matcher has no gradient
            return torch.diag(1 - paired(pred, target))
        return 1 - paired(pred[:, None], target[None])

    def paired(pred, target):
        encoded = (boxes.convert(box, "xyxy", "cxcywh") for box in (pred, target))
        sides = pred.new_tensor(image_size).repeat(2)
        return term(*encoded, pred * sides, target * sides)[0]

    package = loss_utils.__name__.rpartition(".")[0]
    modules = [module for name, module in sys.modules.items() if name.startswith(f"{package}.loss_")]
    name = "generalized_box_iou"
    return Plug("transformers", *((module, name, similarity) for module in modules if hasattr(module, name)))


def _arguments(function):
    return len(inspect.signature(function, follow_wrapped=False).parameters)


class _Encoded(list):
    """The regression targets of Faster R-CNN, with what they are relative to."""

    box_coder = proposals = None


def _box_loss(loss, weight, **settings):
    """The `BoxLoss` of a name, a function or a Loss."""
    if isinstance(loss, str | Loss):
        return BoxLoss(loss, weight, **settings)
    if not callable(loss):
        raise TypeError(f"loss must be a name such as 'giou' or a function (pred, target), got {type(loss).__name__}")
    known = next((entry for entry in LOSSES.values() if entry.function is loss), None)
    name = getattr(loss, "__name__", type(loss).__name__)
    return BoxLoss(known or Loss(name, name, loss, "boxes"), weight, **settings)
