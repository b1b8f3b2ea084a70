"""Losses made of another loss: `focaler(losses.giou)`, `wise(losses.wiou)`. In LOSSES they are named so too, as
``LOSSES["focaler(giou)"]``.

What they wrap is a loss about overlap, a function (pred, target) of xyxy boxes (..., 4) that returns one value a box.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from giou_repro import _terms as terms
from giou_repro import boxes


@dataclass(frozen=True)
class focaler:
    """loss + IoU − min(1, max(0, (IoU − d)/(u − d))): IoU is stretched so that d becomes 0 and u becomes 1.

    Zhang and Zhang, Focaler-IoU, 2024, L_X-Focaler; d = 0, u = 0.95. For the IoU loss the gradient is 0 above u and
    below d, so that nothing is pulled further than u. Raises ValueError unless 0 ≤ d < u ≤ 1.
    """

    loss: Callable
    d: float = 0.0
    u: float = 0.95

    def __post_init__(self):
        if terms.number("u", self.u, most=1) <= terms.number("d", self.d, least=0):
            raise ValueError(f"focaler: d must be below u, got d={self.d}, u={self.u}")

    def __call__(self, pred: Tensor, target: Tensor) -> Tensor:
        iou = boxes.overlap(pred, target).iou
        return self.loss(pred, target) + iou - ((iou - self.d) / (self.u - self.d)).clamp(0, 1)


class wise(nn.Module):
    """loss · r, r constant in the gradient; β = (1 − IoU)/m, r = β/(δ α^(β − δ)), or √β in version 2.

    Tong et al., Wise-IoU, 2023: `wise(losses.wiou)` is L_WIoUv3, with `version=2` L_WIoUv2; α = 1.9, δ = 3. m is the
    running mean of 1 − IoU: 1 at first, then with each call (1 − μ) m + μ times the boxes' mean; μ is
    1 − 0.05^(1/steps).
    `steps` is after how many calls AP flattens: batches an epoch times epochs, 30,260 in the authors' example.

    A torch module whose `state_dict` has m: a model that has it as an attribute saves and restores it. In `eval()` and
    without gradients m stays as it is. Each has an m of its own; several processes have one each, or that of the first
    where DistributedDataParallel wraps the model. Raises ValueError for another version, or numbers not above 0.
    """

    def __init__(self, loss: Callable, version: int = 3, steps: int = 30_260, alpha: float = 1.9, delta: float = 3):
        super().__init__()
        if version not in (2, 3):
            raise ValueError(f"wise: version must be 2 or 3, got {version!r}; version 1 is the loss wiou")
        self.loss, self.version = loss, version
        self.alpha, self.delta = terms.number("alpha", alpha), terms.number("delta", delta)
        self.momentum = 1 - 0.05 ** (1 / terms.number("steps", steps))
        self.register_buffer("mean", torch.ones(()))

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        missed = 1 - boxes.overlap(pred, target).iou.detach()
        if self.training and torch.is_grad_enabled() and missed.numel():
            now = missed.mean().to(self.mean.dtype)
            self.mean = self.mean.to(now.device).lerp(now, self.momentum)
        beta = missed / self.mean.to(missed).clamp(min=1e-6)
        factor = beta.sqrt() if self.version == 2 else beta / (self.delta * self.alpha ** (beta - self.delta))
        return factor * self.loss(pred, target)


WRAPPERS = {"focaler": focaler, "wise": wise}
