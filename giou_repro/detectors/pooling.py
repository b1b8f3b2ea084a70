"""RoIAlign (He et al., Mask R-CNN, ICCV 2017, section 3): torchvision's, with small maps on a CPU pooled by matrix
products."""

import math

import torch
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

LARGEST = 64 * 64  # cells of a map: with larger ones the products cost more than they save
SAMPLES = 2  # a cell and axis


class RoIAlign(MultiScaleRoIAlign):
    """Pools boxes from maps named by their strides, (B, C, H, W) each, to (n, C, cells, cells).

    torchvision's backward pass of it goes number by number on one core, two fifths of a small detector's training step
    on a CPU. Bilinear samples on a grid are a product of matrices, one along y and one along x. Values and gradients
    are torchvision's, which does it for maps that are large or on a GPU.
    """

    def __init__(self, strides, cells):
        super().__init__([str(stride) for stride in strides], output_size=cells, sampling_ratio=SAMPLES)
        self.strides, self.cells = strides, cells

    def forward(self, x, boxes, image_shapes):
        maps = [x[name] for name in self.featmap_names]
        if maps[0].device.type != "cpu" or maps[0].shape[-2:].numel() > LARGEST:
            return super().forward(x, boxes, image_shapes)
        levels = LevelMapper(*(int(math.log2(stride)) for stride in (self.strides[0], self.strides[-1])))(boxes)
        image = torch.repeat_interleave(torch.tensor([len(of_image) for of_image in boxes]))
        boxes, order, parts = torch.cat(boxes).float(), [], []
        with torch.autocast("cpu", enabled=False):
            for level, (features, stride) in enumerate(zip(maps, self.strides, strict=True)):
                for number, of_image in enumerate(features.float()):
                    here = torch.where((levels == level) & (image == number))[0]
                    order.append(here)
                    parts.append(_pool(of_image, boxes[here] / stride, self.cells))
        pooled = torch.cat(parts)
        return pooled.new_zeros(len(boxes), *pooled.shape[1:]).index_copy(0, torch.cat(order), pooled).to(maps[0].dtype)


def _pool(features, boxes, cells):
    """(n, C, cells, cells) of boxes (n, 4) xyxy in a map (C, H, W), both in its cells."""
    channels, height, width = features.shape
    x1, y1, x2, y2 = boxes.unbind(-1)
    rows, columns = _weights(y1, y2, height, cells), _weights(x1, x2, width, cells)
    bands = rows.flatten(0, 1) @ features.permute(1, 2, 0).reshape(height, width * channels)
    return (columns[:, None] @ bands.view(-1, cells, width, channels)).permute(0, 3, 1, 2)


def _weights(low, high, size, cells):
    """How much each cell of an axis of `size` counts in the cells (n, cells, size) of boxes from `low` to `high` (n):
    the mean of the samples, each shared by the two cells beside it; samples more than a cell outside of the map are
    0."""
    steps = (torch.arange(SAMPLES * cells) + 0.5) / (SAMPLES * cells)
    at = low[:, None] + (high - low).clamp(min=1)[:, None] * steps
    inside = (at >= -1) & (at <= size)
    shares = torch.relu(1 - (at.clamp(0, size - 1)[..., None] - torch.arange(size)).abs()) * inside[..., None]
    return shares.view(-1, cells, SAMPLES, size).mean(2)
