"""The gradients of the GIoU authors' Darknet, which are not the derivatives of its losses.

From github.com/generalized-iou/g-darknet, commit 1421328, ``dx_box_iou`` of src/box.c and ``delta_yolo_box`` of
src/yolo_layer.c. They depart from the derivative in two places, and YOLOv3 can be trained with either departure:

the loss: the intersection is a product of signed lengths. Of disjoint boxes it is then not 0, and has a derivative:
    `darknet_iou` and `darknet_giou`, which have the loss's value and this gradient (where a loss is named:
    ``giou_repro.detectors.darknet:darknet_giou``). Boxes that are apart along both axes are pushed away from each other
    where the union, computed so, is above 0.
the chain rule: the derivative by the box, in units of the image, is passed on without the sigmoid's derivative, the
    cell's size and the anchor's: `passed_on`, by ``darknet_chain`` of YOLOv3.
"""

import torch
from torch import Tensor

from giou_repro import boxes, losses


def darknet_iou(pred: Tensor, target: Tensor) -> Tensor:
    """1 − IoU (...) of xyxy boxes (..., 4), with Darknet's gradient."""
    intersection, union, _ = _areas(pred, target)
    return _valued(losses.iou(pred, target), 1 - _ratio(intersection, union))


def darknet_giou(pred: Tensor, target: Tensor) -> Tensor:
    """1 − GIoU (...) of xyxy boxes (..., 4), with Darknet's gradient."""
    intersection, union, enclosing = _areas(pred, target)
    return _valued(losses.giou(pred, target), 2 - _ratio(intersection, union) - _ratio(union, enclosing))


def passed_on(encoded: Tensor, decoded: Tensor, raw: Tensor, cells: Tensor, image_size: int) -> tuple[Tensor, Tensor]:
    """Encodings (n, 4) and decoded xyxy boxes (n, 4) in pixels of YOLOv3's `raw` outputs t (n, 4) in `cells` (n, 5),
    with Darknet's derivatives by t: of the encoding 1; of the centre `image_size`, not that times σ(t) (1 − σ(t)) over
    the number of cells; of the sides exp(t) times `image_size`, not times the anchor."""
    centre = image_size * raw[..., :2]
    half = (decoded[..., 2:] - decoded[..., :2]) * (image_size / cells[..., 3:]) / 2
    return _valued(encoded, raw), _valued(decoded, torch.cat([centre - half, centre + half], -1))


def _valued(value, graph):
    """`value` with the gradient of `graph`."""
    return value.detach() + (graph - graph.detach())


def _areas(pred, target):
    """The signed intersection, the union that follows from it, and the enclosing box."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = boxes.corners(pred), boxes.corners(target)
    width, height = torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1), torch.minimum(ay2, by2) - torch.maximum(ay1, by1)
    across, down = torch.maximum(ax2, bx2) - torch.minimum(ax1, bx1), torch.maximum(ay2, by2) - torch.minimum(ay1, by1)
    intersection = width * height
    return intersection, boxes.area(pred) + boxes.area(target) - intersection, across * down


def _ratio(part, whole):
    """part / whole, 0 where `whole` is not above 0."""
    return torch.where(whole > 0, part / torch.where(whole > 0, whole, 1), 0)
