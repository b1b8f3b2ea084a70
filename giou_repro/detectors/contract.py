"""What torchvision's detectors need to keep the contract of this package: images and targets as they are, one set of
names, float32 where it matters."""

import torch
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform

SCORE_THRESHOLD = 0.01  # AP wants the long tail of detections; torchvision's 0.05 and 0.2 are for looking at
DETECTIONS = 100  # an image, as COCO counts
POSITIVES = ("count", "iou", "disjoint", "samples")  # what a box loss leaves among torchvision's losses
NAMES = {  # of torchvision's losses → of the contract
    "loss_classifier": "classification",
    "loss_box_reg": "box",
    "loss_mask": "mask",
    "loss_objectness": "objectness",
    "loss_rpn_box_reg": "rpn_box",
    "bbox_regression": "box",
    "bbox_ctrness": "centerness",
}


class Contract(nn.Module):
    """Before a detector of torchvision among the base classes: in training it gives (losses, positives)."""

    def forward(self, images, targets=None):
        outputs = super().forward(images, targets)
        if not self.training:
            return outputs
        positives = {name: outputs.pop(name) for name in POSITIVES if name in outputs}
        return {NAMES.get(name, name): value for name, value in outputs.items()}, positives


class InFloat32:
    """Before a head of torchvision among the base classes: its outputs leave autocast, before boxes are decoded."""

    def forward(self, features):
        return _in_float32(super().forward(features))


def _in_float32(outputs):
    if isinstance(outputs, torch.Tensor):
        return outputs.float()
    if isinstance(outputs, dict):
        return {name: _in_float32(value) for name, value in outputs.items()}
    return [_in_float32(value) for value in outputs]


class NoTransform(GeneralizedRCNNTransform):
    """In place of torchvision's resizing and normalising: squares of one size (B, 3, S, S) pass, the backbone
    normalises them.

    Raises TypeError for images that are not floating point, ValueError for another shape.
    """

    def __init__(self):
        super().__init__(1, 1, [0.0] * 3, [1.0] * 3)

    def forward(self, images, targets=None):
        if not images.is_floating_point():
            raise TypeError(f"images must be floating point in 0..1, got {images.dtype}; divide bytes by 255")
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must have shape (B, 3, S, S), got {tuple(images.shape)}")
        return ImageList(images, [tuple(images.shape[-2:])] * len(images)), targets


class Anchors(AnchorGenerator):
    """torchvision's anchors, in float32 under autocast too: bfloat16 has no odd numbers above 256."""

    def set_cell_anchors(self, dtype, device):
        super().set_cell_anchors(torch.float32, device)


class GroupNorm(nn.GroupNorm):
    """torch's, on features laid out channel by channel: for channels-last ones a CPU takes up to eighty times as long,
    in bfloat16, backwards."""

    def forward(self, features):
        return super().forward(features.contiguous()).contiguous(memory_format=torch.channels_last)


def anchor_sizes(image_size):
    """Side in pixels of the anchors of five levels, finest first: S/16, S/8, S/4, S/2 and S, but at most torchvision's
    32 to 512."""
    return tuple(min(32, image_size / 16) * 2**level for level in range(5))
