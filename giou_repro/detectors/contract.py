"""What torchvision's detectors need to keep the contract of this package: images and targets as they are, one set of
names."""

import torch
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform

SCORE_THRESHOLD = 0.01  # AP wants the long tail of detections; torchvision's 0.05 and 0.2 are for looking at
DETECTIONS = 100  # an image, as COCO counts
NAMES = {
    **{
        "loss_classifier": "classification",
        "loss_box_reg": "box",
        "loss_mask": "mask",
        "loss_objectness": "objectness",
    },
    **{"loss_rpn_box_reg": "rpn_box", "bbox_regression": "box", "bbox_ctrness": "centerness"},
}


class AsIs(GeneralizedRCNNTransform):
    """In torchvision's place for resizing and normalising: squares of one size (B, 3, S, S) pass, the backbone
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


def in_float32(outputs):
    """A dict, list or tuple of tensors in float32: what heads give under autocast, before boxes are decoded from it."""
    if isinstance(outputs, torch.Tensor):
        return outputs.float()
    return (
        {name: in_float32(each) for name, each in outputs.items()}
        if isinstance(outputs, dict)
        else [in_float32(each) for each in outputs]
    )


def losses_and_positives(outputs):
    """torchvision's dict of losses, in which the box loss has left its positives → (losses, positives)."""
    positives = {name: outputs[name] for name in ("count", "iou", "disjoint", "samples") if name in outputs}
    return {NAMES.get(name, name): value for name, value in outputs.items() if name not in positives}, positives


def anchor_sizes(image_size):
    """Side in pixels of the anchors of five levels, finest first: S/16, S/8, S/4, S/2 and S, but at most torchvision's
    32 to 512."""
    return tuple(min(32, image_size / 16) * 2**level for level in range(5))
