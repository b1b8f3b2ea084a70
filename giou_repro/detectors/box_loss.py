"""The one place where a detector meets a box-regression loss: encodings and decoded boxes of the positives in, a loss
for each out."""

import numbers

import torch

from giou_repro import boxes
from giou_repro.registry import LOSSES, Loss, select


class BoxLoss:
    """A loss of LOSSES with the weight it has in a detector.

    `loss` is a name in LOSSES, a ``module:function`` of the user, or a `Loss`; `weight` multiplies it. `settings` of
    the detector, as ``image_size=(width, height)``, are passed on to a loss that takes a keyword of that name. Raises
    ValueError for an unknown loss, or a weight that is not a positive number.
    """

    def __init__(self, loss, weight=1.0, **settings):
        if not isinstance(weight, numbers.Real) or not 0 < weight < float("inf"):
            raise ValueError(f"the box loss weight must be a number above 0, got {weight!r}")
        self.loss = loss if isinstance(loss, Loss) else LOSSES[select([loss])[0]]
        self.weight = float(weight)
        self.options = {name: value for name, value in settings.items() if name in self.loss.keywords}
        # what a loss remembers, as a running mean, is saved with a training
        functions = (part.function for _, part in self.loss.parts)
        self.memory = torch.nn.ModuleList(each for each in functions if isinstance(each, torch.nn.Module))

    def __call__(self, encoded_pred, encoded_target, pred_boxes, target_boxes):
        """The weighted loss (n,) of each positive, and the measures of the n positives.

        A "coordinates" loss compares the encodings (n, 4), whatever the detector regresses; a "boxes" loss the decoded
        xyxy boxes (n, 4); each term of a sum takes its own. All is computed in float32, under autocast too. The second
        result holds three detached 0-d tensors: ``count`` (n), ``iou`` (the sum of the decoded boxes' IoU with their
        targets) and ``disjoint`` (how many have no overlap with theirs). With n = 0 the loss is empty and its sum a
        zero with a gradient.
        """
        encoded, decoded = (encoded_pred.float(), encoded_target.float()), (pred_boxes.float(), target_boxes.float())
        with torch.autocast(pred_boxes.device.type, enabled=False):
            value = self.weight * self.loss.of(encoded, decoded, **self.options)
            with torch.no_grad():
                overlap = boxes.iou(pred_boxes.float(), target_boxes.float())
        return value, {
            "count": overlap.new_full((), len(overlap)),
            "iou": overlap.sum(),
            "disjoint": (overlap == 0).float().sum(),
        }
