"""RetinaNet (Lin et al., ICCV 2017) and FCOS (Tian et al., ICCV 2019), torchvision's, with any box loss."""

from functools import partial

import torch
from torchvision.models import detection
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSHead, FCOSRegressionHead
from torchvision.models.detection.retinanet import RetinaNetHead

from giou_repro.detectors import backbones
from giou_repro.detectors.contract import (
    DETECTIONS,
    SCORE_THRESHOLD,
    Anchors,
    Contract,
    GroupNorm,
    InFloat32,
    NoTransform,
    anchor_sizes,
)

NORM = partial(GroupNorm, 32)


class RetinaNet(Contract, detection.RetinaNet):
    """torchvision's RetinaNet under this package's contract; images (B, 3, S, S) in 0..1."""

    divided_by = dict.fromkeys(("classification", "box"), "images")


class FCOS(Contract, detection.FCOS):
    """torchvision's FCOS under this package's contract; images (B, 3, S, S) in 0..1."""

    divided_by = dict.fromkeys(("classification", "box", "centerness"), "count")


def retinanet(num_classes, box_loss, image_size, backbone=None):
    """RetinaNet: three sizes and three shapes of anchor at each of five levels, focal loss, heads with group
    normalisation.

    A coordinate loss compares (dx/w, dy/h, log dw, log dh) to the anchor, an overlap loss decoded boxes. Each image's
    sum over positives is divided by their number.
    """
    sizes = [tuple(size * 2 ** (third / 3) for third in range(3)) for size in anchor_sizes(image_size)]
    return _detector(RetinaNet, _RetinaNetHead, num_classes, box_loss, image_size, backbone, sizes, (0.5, 1.0, 2.0))


def fcos(num_classes, box_loss, image_size, backbone=None):
    """FCOS: one point a cell, centre sampling, centerness.

    A coordinate loss compares the distances from the point to the four edges over the stride, an overlap loss decoded
    boxes. The sum over positives is divided by the batch's number of positives.
    """
    sizes = [(_finest(image_size) * 2**level,) for level in range(5)]
    return _detector(FCOS, _FCOSHead, num_classes, box_loss, image_size, backbone, sizes, (1.0,))


def _finest(image_size):
    """The finest stride: 4 for small images, else the papers' 8."""
    return 4 if image_size < backbones.SMALL else 8


def _detector(family, head, num_classes, box_loss, image_size, backbone, sizes, ratios):
    pyramid = backbones.Pyramid(backbone, image_size, _finest(image_size))
    anchors = Anchors(tuple(sizes), (ratios,) * len(sizes))
    head = head(box_loss, pyramid.out_channels, anchors.num_anchors_per_location()[0], num_classes)
    limits = {"score_thresh": SCORE_THRESHOLD, "detections_per_img": DETECTIONS}
    model = family(pyramid, num_classes, anchor_generator=anchors, head=head, **limits)
    model.transform, model.box_loss = NoTransform(), box_loss
    return model


class _RetinaNetHead(InFloat32, RetinaNetHead):
    """torchvision's head with the box loss given; it leaves count, iou and disjoint among the losses."""

    def __init__(self, box_loss, *sizes):
        super().__init__(*sizes, norm_layer=NORM)
        self.box_loss = box_loss

    def compute_loss(self, targets, head_outputs, anchors, matched_idxs):
        deltas, anchors, truth, image = positive_boxes(targets, head_outputs["bbox_regression"], anchors, matched_idxs)
        coder = self.regression_head.box_coder
        encoded, decoded = coder.encode_single(truth, anchors), coder.decode_single(deltas, anchors)
        losses, positives = self.box_loss(deltas, encoded, decoded, truth)
        share = 1 / image.bincount(minlength=len(targets)).clamp(min=1)  # each image counts alike, as in torchvision
        classification = self.classification_head.compute_loss(targets, head_outputs, matched_idxs)
        return {"classification": classification, "box": (losses * share[image]).sum() / len(targets), **positives}


class _FCOSHead(InFloat32, FCOSHead):
    """torchvision's head with its GIoU loss exchanged for the box loss given; it leaves count, iou and disjoint among
    the losses."""

    def __init__(self, box_loss, channels, anchors, num_classes):
        super().__init__(channels, anchors, num_classes)
        self.classification_head = FCOSClassificationHead(channels, anchors, num_classes, norm_layer=NORM)
        self.regression_head = FCOSRegressionHead(channels, anchors, norm_layer=NORM)
        self.box_loss = box_loss

    def compute_loss(self, targets, head_outputs, anchors, matched_idxs):
        torchvisions = super().compute_loss(targets, head_outputs, anchors, matched_idxs)
        deltas, anchors, truth, _ = positive_boxes(targets, head_outputs["bbox_regression"], anchors, matched_idxs)
        encoded, decoded = self.box_coder.encode(anchors, truth), self.box_coder.decode(deltas, anchors)
        losses, positives = self.box_loss(deltas, encoded, decoded, truth)
        return torchvisions | {"bbox_regression": losses.sum() / max(1, len(losses))} | positives


def positive_boxes(targets, deltas, anchors, matched):
    """Over the batch's positives: deltas, anchors and true boxes (n, 4) each, and the index (n,) of their image.

    deltas (B, A, 4); anchors and matched a list of B, (A, 4) and (A,): the index of the true box that an anchor answers
    for, below 0 for none.
    """
    matched = torch.stack(matched)  # (B, A)
    image, anchor = torch.where(matched >= 0)  # (n,) each, by image
    truth = torch.cat([target["boxes"][index[index >= 0]] for target, index in zip(targets, matched, strict=True)])
    return deltas[image, anchor], torch.stack(anchors)[image, anchor], truth, image
