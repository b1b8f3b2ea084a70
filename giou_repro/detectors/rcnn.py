"""Faster R-CNN (Ren et al., NeurIPS 2015) and Mask R-CNN (He et al., ICCV 2017), torchvision's, with any final box
loss.

The loss swapped is that of the last refinement, as in the GIoU paper; proposals keep their smooth ℓ1.
"""

from dataclasses import replace
from functools import partial

import torch
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from giou_repro.detectors import backbones
from giou_repro.detectors.box_loss import BoxLoss
from giou_repro.detectors.contract import (
    DETECTIONS,
    SCORE_THRESHOLD,
    Anchors,
    AsIs,
    anchor_sizes,
    in_float32,
    losses_and_positives,
)
from giou_repro.detectors.pooling import RoIAlign

BETA = 1 / 9  # where torchvision's smooth ℓ1 turns from a parabola into a line


class _ProposalHead(RPNHead):
    def forward(self, features):
        return in_float32(super().forward(features))


class _Predictor(FastRCNNPredictor):
    """torchvision's classes and deltas in float32; the deltas are kept for the box loss."""

    deltas = None

    def forward(self, features):
        scores, self.deltas = in_float32(super().forward(features))
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
            losses["loss_box_reg"], positives = self._box(targets, self.box_predictor.deltas, *self.samples)
            losses |= positives | {"samples": positives["count"].new_tensor(sum(map(len, self.samples[0])))}
            self.samples = None
        self.box_predictor.deltas = None
        return detections, losses

    def _box(self, targets, deltas, proposals, matched, labels, encoded):
        """The box loss over all sampled proposals, divided by their number, and the positives. Deltas are those of the
        true class."""
        truth = torch.cat(
            [target["boxes"][index[label > 0]] for target, index, label in zip(targets, matched, labels, strict=True)]
        )
        labels, proposals, encoded = torch.cat(labels), torch.cat(proposals), torch.cat(encoded)
        positive = torch.where(labels > 0)[0]
        deltas = deltas.view(len(labels), -1, 4)[positive, labels[positive]]
        decoded = self.box_coder.decode_single(deltas, proposals[positive])
        each, positives = self.box_loss(deltas, encoded[positive], decoded, truth)
        return each.sum() / len(labels), positives


class RCNN(GeneralizedRCNN):
    """torchvision's R-CNN under this package's contract; images (B, 3, S, S) in 0..1. Its class 0 is the background,
    hence the shift."""

    # the proposal network samples 256 anchors of every image that has as many
    divided_by = dict.fromkeys(("objectness", "rpn_box"), "images") | dict.fromkeys(
        ("classification", "box"), "samples"
    )
    divided_by |= {"mask": "count"}

    def forward(self, images, targets=None):
        if self.training:
            targets = [{**target, "labels": target["labels"] + 1} for target in targets]
            return losses_and_positives(super().forward(images, targets))
        return [_detection(**found) for found in super().forward(images)]


def _detection(boxes, labels, scores, masks=None):
    found = {"boxes": boxes, "scores": scores, "labels": labels - 1}
    return found if masks is None else found | {"masks": masks[:, 0] > 0.5}


def faster_rcnn(num_classes, box_loss, image_size, backbone=None):
    """Faster R-CNN on a pyramid of strides 4 to 64, one size and three shapes of anchor a level.

    A coordinate loss compares Fast R-CNN's deltas to the proposal, (10 dx/w, 10 dy/h, 5 log dw, 5 log dh), an overlap
    loss decoded boxes. The sum over positives is divided by the number of sampled proposals; "smooth_l1" is
    torchvision's, with its bend at 1/9. Below 256 pixels it defaults to the tiny backbone, and fewer proposals are kept
    and sampled.
    """
    small = image_size < 256
    pyramid = backbones.Pyramid(backbone or ("tiny" if small else "resnet50"), finest=4)
    channels, wide = pyramid.out_channels, 4 * pyramid.out_channels
    anchors = Anchors(tuple((size,) for size in anchor_sizes(image_size)), ((0.5, 1.0, 2.0),) * 5)
    kept = {"training": 500, "testing": 250} if small else {"training": 2000, "testing": 1000}
    proposals = RegionProposalNetwork(
        anchors, _ProposalHead(channels, 3), 0.7, 0.3, 256, 0.5, kept, kept, nms_thresh=0.7
    )
    heads = _RoIHeads(
        box_roi_pool=RoIAlign(backbones.STRIDES, 7),
        box_head=TwoMLPHead(channels * 7**2, wide),
        box_predictor=_Predictor(wide, num_classes + 1),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=64 if small else 512,
        positive_fraction=0.25,
        bbox_reg_weights=(10.0, 10.0, 5.0, 5.0),
        score_thresh=SCORE_THRESHOLD,
        nms_thresh=0.5,
        detections_per_img=DETECTIONS,
    )
    heads.box_loss = _bent(box_loss)
    model = RCNN(pyramid, proposals, heads, AsIs())
    model.box_loss = box_loss
    return model


def mask_rcnn(num_classes, box_loss, image_size, backbone=None):
    """`faster_rcnn` with torchvision's mask head; targets need `masks` (n, S, S), detections have them, bool (k, S,
    S)."""
    model = faster_rcnn(num_classes, box_loss, image_size, backbone)
    heads, channels = model.roi_heads, model.backbone.out_channels
    heads.mask_roi_pool = RoIAlign(backbones.STRIDES, 14)
    heads.mask_head = MaskRCNNHeads(channels, (channels,) * 4, 1)
    heads.mask_predictor = MaskRCNNPredictor(channels, channels, num_classes + 1)
    return model


def _bent(box_loss):
    """`box_loss`, but smooth ℓ1 with its bend at BETA."""
    if box_loss.loss.name != "smooth_l1":
        return box_loss
    return BoxLoss(replace(box_loss.loss, function=partial(_smooth_l1, box_loss.loss.function)), box_loss.weight)


def _smooth_l1(function, pred, target):
    return BETA * function(pred / BETA, target / BETA)
