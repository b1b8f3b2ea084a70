"""Faster R-CNN (Ren et al., NeurIPS 2015) and Mask R-CNN (He et al., ICCV 2017), torchvision's, with any final box
loss.

The loss swapped is that of the last refinement, as in the GIoU paper; proposals keep their smooth ℓ1.
"""

from dataclasses import replace
from typing import ClassVar

import torch
from torch.nn import functional
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign

from giou_repro.detectors import backbones
from giou_repro.detectors.contract import (
    DETECTIONS,
    SCORE_THRESHOLD,
    Anchors,
    Contract,
    InFloat32,
    NoTransform,
    anchor_sizes,
)

SMOOTH_L1_BETA = 1 / 9  # where torchvision's smooth ℓ1 turns from a parabola into a line
RPN_SAMPLES = 256  # anchors of an image that the proposal network is trained on
BOX_CELLS, MASK_CELLS = 7, 14  # side of what is pooled of a proposal


class RCNN(Contract, GeneralizedRCNN):
    """torchvision's R-CNN under this package's contract; images (B, 3, S, S) in 0..1. Its class 0 is the background,
    hence the shift."""

    # every image has as many anchors as the proposal network samples, so that its losses count images
    divided_by: ClassVar = dict(
        objectness="images", rpn_box="images", classification="samples", box="samples", mask="count"
    )

    def forward(self, images, targets=None):
        if self.training:
            return super().forward(images, [{**target, "labels": target["labels"] + 1} for target in targets])
        detections = super().forward(images)
        for detection in detections:
            detection["labels"] -= 1
            if "masks" in detection:
                detection["masks"] = detection["masks"][:, 0] > 0.5  # (k, 1, S, S) → (k, S, S)
        return detections


def faster_rcnn(num_classes, box_loss, image_size, backbone=None):
    """Faster R-CNN on a pyramid of strides 4 to 64, one size and three shapes of anchor a level.

    A coordinate loss compares Fast R-CNN's deltas to the proposal, (10 dx/w, 10 dy/h, 5 log dw, 5 log dh), an overlap
    loss decoded boxes. The sum over positives is divided by the number of sampled proposals; "smooth_l1" is
    torchvision's, with its bend at 1/9. Below 256 pixels it defaults to the tiny backbone, and fewer proposals are kept
    and sampled.
    """
    small = image_size < backbones.SMALL
    pyramid = backbones.Pyramid(backbone, image_size, finest=4)
    channels, hidden = pyramid.out_channels, 4 * pyramid.out_channels
    anchors = Anchors(tuple((size,) for size in anchor_sizes(image_size)), ((0.5, 1.0, 2.0),) * 5)
    kept = {"training": 500, "testing": 250} if small else {"training": 2000, "testing": 1000}
    proposals = RegionProposalNetwork(
        anchors, _ProposalHead(channels, 3), 0.7, 0.3, RPN_SAMPLES, 0.5, kept, kept, nms_thresh=0.7
    )
    heads = _RoIHeads(
        box_roi_pool=_roi_align(BOX_CELLS),
        box_head=TwoMLPHead(channels * BOX_CELLS**2, hidden),
        box_predictor=_Predictor(hidden, num_classes + 1),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=64 if small else 512,
        positive_fraction=0.25,
        bbox_reg_weights=(10.0, 10.0, 5.0, 5.0),
        score_thresh=SCORE_THRESHOLD,
        nms_thresh=0.5,
        detections_per_img=DETECTIONS,
    )
    if box_loss.loss.name == "smooth_l1":
        box_loss = type(box_loss)(replace(box_loss.loss, function=_smooth_l1), box_loss.weight)
    model = RCNN(pyramid, proposals, heads, NoTransform())
    model.box_loss = heads.box_loss = box_loss
    return model


def mask_rcnn(num_classes, box_loss, image_size, backbone=None):
    """`faster_rcnn` with torchvision's mask head; targets need `masks` (n, S, S), detections have them, bool (k, S,
    S)."""
    model = faster_rcnn(num_classes, box_loss, image_size, backbone)
    heads, channels = model.roi_heads, model.backbone.out_channels
    heads.mask_roi_pool = _roi_align(MASK_CELLS)
    heads.mask_head = MaskRCNNHeads(channels, (channels,) * 4, 1)
    heads.mask_predictor = MaskRCNNPredictor(channels, channels, num_classes + 1)
    return model


def _roi_align(cells):
    return MultiScaleRoIAlign([str(stride) for stride in backbones.STRIDES], cells, sampling_ratio=2)


def _smooth_l1(pred, target):
    """torchvision's, of deltas (n, 4) → (n,)."""
    return functional.smooth_l1_loss(pred, target, reduction="none", beta=SMOOTH_L1_BETA).sum(-1)


class _ProposalHead(InFloat32, RPNHead):
    pass


class _Predictor(InFloat32, FastRCNNPredictor):
    """torchvision's classes and deltas in float32; the deltas are kept for the box loss."""

    deltas = None

    def forward(self, features):
        scores, self.deltas = super().forward(features)
        return scores, self.deltas


class _RoIHeads(RoIHeads):
    """torchvision's heads with the box loss given in place of its own; it leaves count, iou, disjoint and samples among
    the losses."""

    box_loss = samples = None

    def select_training_samples(self, proposals, targets):
        self.samples = super().select_training_samples(proposals, targets)
        return self.samples

    def forward(self, features, proposals, image_shapes, targets=None):
        detections, losses = super().forward(features, proposals, image_shapes, targets)
        if self.training:
            losses["loss_box_reg"], positives = self._box_loss(targets, self.box_predictor.deltas, *self.samples)
            losses |= positives
        self.samples = self.box_predictor.deltas = None
        return detections, losses

    def _box_loss(self, targets, deltas, proposals, matched, labels, encoded):
        """The box loss over all sampled proposals, divided by their number, and the positives. Deltas are those of the
        true class."""
        truth = torch.cat(
            [target["boxes"][index[label > 0]] for target, index, label in zip(targets, matched, labels, strict=True)]
        )
        labels, proposals, encoded = torch.cat(labels), torch.cat(proposals), torch.cat(encoded)
        positive = torch.where(labels > 0)[0]
        deltas = deltas.view(len(labels), -1, 4)[positive, labels[positive]]  # (samples, 4·classes) → (n, 4)
        decoded = self.box_coder.decode_single(deltas, proposals[positive])
        losses, positives = self.box_loss(deltas, encoded[positive], decoded, truth)
        samples = positives["count"].new_tensor(len(labels))
        return losses.sum() / len(labels), positives | {"samples": samples}
