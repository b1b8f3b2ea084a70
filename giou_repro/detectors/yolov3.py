"""YOLOv3 (Redmon and Farhadi, arXiv 1804.02767) with any box loss.

The network is the paper's: Darknet-53, three scales, nine anchors, one best anchor for each true box. The box loss is
swapped as the GIoU paper does it: a coordinate loss (MSE is the original) compares the encodings (offset of the centre
in its cell, log of size over anchor), weighted by 2 − area as in Darknet; an overlap loss compares decoded boxes.
Departures from Darknet: every term is divided by the number of positives of the batch, not by the number of images;
and the gradient is that of the loss, where that of the GIoU authors' Darknet departs from it as `darknet` says.
"""

from functools import partial

import torch
from torch import nn
from torch.nn import functional
from torchvision.ops import Conv2dNormActivation, batched_nms

from giou_repro import boxes
from giou_repro.detectors import backbones, darknet

STRIDES = (8, 16, 32)
ANCHORS = (  # width and height in pixels of a 416-pixel image, three for each stride
    *((10, 13), (16, 30), (33, 23)),
    *((30, 61), (62, 45), (59, 119)),
    *((116, 90), (156, 198), (373, 326)),
)
IGNORE_IOU = 0.5  # a prediction that overlaps a true box more than this is never called background
LARGEST_LOG_SIZE = 8  # e^8 anchors: beyond any image
RARE_OBJECT_LOGIT = -4.6  # of objectness at the start: "background", or the first steps are lost on it
LOWEST_SCORE, NMS_IOU, CANDIDATES, DETECTIONS = 0.005, 0.45, 1000, 100  # of an image
DARKNETS = {  # width of the first layer, residual blocks of each stage, convolutions that mix the scales
    "tiny": (8, (0, 0, 0, 0, 0), 1),  # a deep narrow one learns slowly: its classes were at chance after 600 steps
    "darknet53": (32, (1, 2, 8, 8, 4), 5),
}


_convolution = partial(Conv2dNormActivation, activation_layer=partial(nn.LeakyReLU, 0.1))  # with batch normalisation


def yolov3(num_classes, box_loss, image_size, backbone=None, cells_away=0, darknet_chain=False):
    """The detector; `backbone` "tiny" (2 cores), "darknet53" (the paper's), or one of `backbones`.

    With `cells_away` k > 0 each true box is answered for by a cell k columns from that of its centre, to the left, or
    to the right where the left has fewer; where no column is k away, by the farthest. So a share of the positives,
    which rises with k, is disjoint from its target when training begins. The centre's offset is then
    (1 + 2k) σ(t) − k, in (−k, k + 1), because σ(t) alone cannot leave the cell, and no training could reach the target.
    It is the scaled sigmoid of YOLOv4 (Bochkovskiy et al., arXiv 2004.10934), and for all k the middle of the cell at
    t = 0. With `darknet_chain` the box loss is differentiated as `darknet.passed_on` says.
    """
    width, blocks, mixing = DARKNETS.get(backbone or "tiny", (None, None, 5))
    features = Darknet(width, blocks) if width else backbones.build(backbone, STRIDES)
    return YOLOv3(features, num_classes, box_loss, image_size, mixing, cells_away, darknet_chain)


class YOLOv3(nn.Module):
    """Images (B, 3, S, S) in 0..1, S a multiple of 32, or a list of the backbone's features of them → losses and
    positives where targets are given, in evaluation too; detections otherwise.

    `cells` (P, 5) says for each of the P predictions of an image: column, row, stride, anchor width and height.
    """

    divided_by = dict.fromkeys(("box", "objectness", "classification"), "count")

    def __init__(self, backbone, num_classes, box_loss, image_size, mixing, cells_away, darknet_chain):
        super().__init__()
        self.num_classes, self.box_loss, self.image_size = num_classes, box_loss, image_size
        self.backbone, self.cells_away, self.darknet_chain = backbone, cells_away, darknet_chain
        self.neck = Neck(backbone.channels, 3 * (5 + num_classes), mixing)
        for head in self.neck.heads:
            nn.init.normal_(head[-1].weight, std=0.01)
            nn.init.zeros_(head[-1].bias)
            head[-1].bias.data.view(3, -1)[:, 4] = RARE_OBJECT_LOGIT
        sides = [image_size // stride for stride in STRIDES]
        anchors = torch.tensor(ANCHORS).view(3, 3, 2) * (image_size / 416)
        buffers = {
            "anchors": anchors.flatten(0, 1),  # (9, 2)
            "cells": torch.cat([_cells(*level) for level in zip(sides, STRIDES, anchors, strict=True)]),
            "sides": torch.tensor(sides),  # cells along an axis at each stride
            "firsts": torch.tensor([0, *(3 * side**2 for side in sides[:2])]).cumsum(0),  # prediction of each stride
        }
        for name, values in buffers.items():
            self.register_buffer(name, values, persistent=False)

    def forward(self, images, targets=None):
        features = images if isinstance(images, list) else self.backbone(images)
        levels = (level.unflatten(1, (3, -1)).permute(0, 1, 3, 4, 2) for level in self.neck(features))
        raw = torch.cat([level.flatten(1, 3) for level in levels], 1).float()  # (B, P, 5 + C)
        return self._detections(raw) if targets is None else self._losses(raw, targets)

    def encoding(self, raw):
        """What the network regresses: the centre's offset in cells, (1 + 2k) σ(t) − k of the `cells_away` k, and
        log(size / anchor); (..., 4)."""
        offset = (1 + 2 * self.cells_away) * raw[..., :2].sigmoid() - self.cells_away
        return torch.cat([offset, raw[..., 2:4]], -1)

    def decode(self, encoding, cells):
        """Encodings (..., 4) in `cells` (..., 5) → xyxy pixels."""
        centre = (cells[..., :2] + encoding[..., :2]) * cells[..., 2:3]
        half = cells[..., 3:] * encoding[..., 2:].clamp(max=LARGEST_LOG_SIZE).exp() / 2
        return torch.cat([centre - half, centre + half], -1)

    def _assign(self, centre, size):
        """The index of the prediction that answers for each true box, of centre and size (n, 2) in pixels: the anchor
        of most alike shape, in the cell of its centre or `cells_away` columns from it."""
        centred = torch.cat([-size, size], 1) / 2
        best = boxes.iou(centred[:, None], torch.cat([-self.anchors, self.anchors], 1) / 2).argmax(1)  # (n, 9) → (n,)
        level = best // 3
        side = self.sides[level]
        cell = (centre * side[:, None] / self.image_size).long()
        column, row = cell.clamp(min=0).minimum(side[:, None] - 1).unbind(1)
        left, right = (column - self.cells_away).clamp(min=0), (column + self.cells_away).minimum(side - 1)
        column = torch.where(column - left >= right - column, left, right)
        return self.firsts[level] + ((best % 3) * side + row) * side + column

    def _losses(self, raw, targets):
        truth, labels = (torch.cat([target[key] for target in targets]).to(raw.device) for key in ("boxes", "labels"))
        counts = torch.tensor([len(target["boxes"]) for target in targets])
        image = torch.arange(len(targets)).repeat_interleave(counts).to(raw.device)
        centre, size = boxes.convert(truth, "xyxy", "cxcywh").split(2, -1)
        index = self._assign(centre, size)
        cells, positive = self.cells[index], raw[image, index]  # (n, 5), (n, 5 + C)
        log_size = (size.clamp(min=1e-3) / cells[:, 3:]).log()
        wanted = torch.cat([centre / cells[:, 2:3] - cells[:, :2], log_size], 1)
        encoded = self.encoding(positive)
        decoded = self.decode(encoded, cells)
        if self.darknet_chain:
            encoded, decoded = darknet.passed_on(encoded, decoded, positive[:, :4], cells, self.image_size)
        box, measures = self.box_loss(encoded, wanted, decoded, truth)
        if self.box_loss.loss.space == "coordinates":
            box = box * (2 - size.prod(1) / self.image_size**2)
        objectness, counted = torch.zeros_like(raw[..., 4]), self._background(raw, truth, image)
        objectness[image, index], counted[image, index] = 1, True
        classes = functional.one_hot(labels, self.num_classes).to(raw.dtype)
        cross_entropy = partial(functional.binary_cross_entropy_with_logits, reduction="sum")
        objects = cross_entropy(raw[..., 4], objectness, weight=counted)
        sums = {"box": box.sum(), "objectness": objects, "classification": cross_entropy(positive[:, 5:], classes)}
        return {name: total / max(len(truth), 1) for name, total in sums.items()}, measures

    @torch.no_grad()
    def _background(self, raw, truth, image):
        """Which predictions (B, P) overlap no true box of their image by more than IGNORE_IOU; of each true box (n, 4)
        `image` (n,) has the image."""
        predicted = self.decode(self.encoding(raw), self.cells)
        near = boxes.iou(truth[:, None], predicted[image]) > IGNORE_IOU  # (n, P)
        return torch.zeros_like(raw[..., 0]).index_add_(0, image, near.to(raw.dtype)) == 0

    @torch.no_grad()
    def _detections(self, raw):
        predicted = self.decode(self.encoding(raw), self.cells).clamp(0, self.image_size)
        scores = raw[..., 4:5].sigmoid() * raw[..., 5:].sigmoid()
        detections = []
        for corners, score in zip(predicted, scores, strict=True):
            score, order = score.flatten().topk(min(CANDIDATES, score.numel()))  # of P · C
            order, score = order[score > LOWEST_SCORE], score[score > LOWEST_SCORE]
            cell, label = order // self.num_classes, order % self.num_classes
            keep = batched_nms(corners[cell], score, label, NMS_IOU)[:DETECTIONS]
            detections.append({"boxes": corners[cell[keep]], "scores": score[keep], "labels": label[keep]})
        return detections


class Darknet(nn.Module):
    """The five stages of Darknet-53, or narrower and shorter; gives the features at strides 8, 16 and 32."""

    def __init__(self, width, blocks):
        super().__init__()
        widths = [width * 2**stage for stage in range(6)]
        self.stem = _convolution(3, width, 3)
        self.stages = nn.ModuleList(
            nn.Sequential(_convolution(before, after, 3, stride=2), *(_residual(after) for _ in range(count)))
            for before, after, count in zip(widths, widths[1:], blocks, strict=False)
        )
        self.channels = tuple(widths[3:])

    def forward(self, images):
        features = [self.stem(images)]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features[3:]


class Neck(nn.Module):
    """YOLOv3's top-down path: at each stride `mixing` convolutions (five in the paper), then a 3 × 3 and the
    prediction.

    The coarser scale is upsampled and joined.
    """

    def __init__(self, channels, outputs, mixing):
        super().__init__()
        halves = [count // 2 for count in channels]
        joined = [channels[0] + halves[1] // 2, channels[1] + halves[2] // 2, channels[2]]
        self.mixes = nn.ModuleList(_mix(inputs, half, mixing) for inputs, half in zip(joined, halves, strict=True))
        self.ups = nn.ModuleList(_convolution(half, half // 2, 1) for half in halves[1:])
        self.heads = nn.ModuleList(
            nn.Sequential(_convolution(half, 2 * half, 3), nn.Conv2d(2 * half, outputs, 1)) for half in halves
        )

    def forward(self, features):
        predictions, x = [None] * 3, features[2]
        for level in (2, 1, 0):
            x = self.mixes[level](x)
            predictions[level] = self.heads[level](x)
            if level:
                above = functional.interpolate(self.ups[level - 1](x), scale_factor=2, mode="nearest")
                x = torch.cat([features[level - 1], above], 1)
        return predictions


def _mix(inputs, half, count):
    """`count` convolutions, 1 × 1 to half of the channels and 3 × 3 back in turn."""
    pairs = [(inputs, half, 1), *([(half, 2 * half, 3), (2 * half, half, 1)] * (count // 2))]
    return nn.Sequential(*(_convolution(*pair) for pair in pairs))


def _residual(channels):
    """x + conv3(conv1(x)), the middle at half the channels."""
    return backbones.Residual(_convolution(channels, channels // 2, 1), _convolution(channels // 2, channels, 3))


def _cells(side, stride, anchors):
    """(3·side², 5): column, row, stride, anchor width, anchor height of every prediction of one level, anchors
    outermost."""
    anchor, row, column = torch.meshgrid(torch.arange(3), torch.arange(side), torch.arange(side), indexing="ij")
    cell = torch.stack([column, row, torch.full_like(row, stride)], -1).flatten(0, 2).float()
    return torch.cat([cell, anchors[anchor.flatten()]], 1)
