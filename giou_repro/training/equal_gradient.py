"""At which weight the gradient of one box loss is as large as that of another, on the positives of a trained run.

The run's model sees its validation images as in training, the proposals drawn from one seed. Of every positive it takes
the gradient of the detector's box term, with all factors that it has there, by the four numbers that the detector
regresses for it: so losses of boxes and of coordinates compare. What is equalled is the mean of its norm over the
positives. It is of the trained model: in the first epochs, where fewer boxes overlap their target, the ratio is
another.
"""

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from giou_repro import devices
from giou_repro.detectors import WEIGHTS, BoxLoss
from giou_repro.registry import LOSSES, label
from giou_repro.training import batches, loop, predict


class Watched(BoxLoss):
    """A BoxLoss of weight 1 that keeps the encodings (n, 4) which it was given last."""

    encoded = None

    def __call__(self, encoded_pred, *others):
        self.encoded = encoded_pred
        return super().__call__(encoded_pred, *others)


def compare(folder, loss: str, like: str) -> dict:
    """Of the run in a folder: loss, like, detector, positives, the share of them disjoint from their target, the mean
    norm of both losses' gradients at weight 1, `like_weight`, which the detector gives `like` by default, and `weight`,
    at which `loss` has the gradient of `like` at that weight. Raises OSError and ValueError."""
    _, config, _ = predict.load(folder)
    _, val_set = loop.open_sets(config)
    masks = config.detector == "mask_rcnn"
    val = batches.pack(val_set, config.image_size, masks, config.val_images, batches.cache_folder())
    means = {name: _mean_gradient(folder, name, val, config) for name in (loss, like)}
    (own, seen), (others, _) = (means[name] for name in (loss, like))
    if not seen["count"] or not own > 0:
        raise ValueError(
            f"{loss} has no gradient on the {seen['count']:.0f} positives of {folder}: no weight can equal {like}"
        )
    of_like = WEIGHTS.get((config.detector, LOSSES[like].space), 1.0)
    return dict(
        **dict(loss=loss, like=like, detector=config.detector, positives=int(seen["count"])),
        **dict(disjoint=seen["disjoint"] / seen["count"], gradient=own, like_gradient=others),
        **dict(like_weight=of_like, weight=of_like * others / own),
    )


def describe(found: dict) -> str:
    """The weight, and what it is of."""
    loss, like = label(found["loss"]), label(found["like"])
    return (
        f"{loss} at weight {found['weight']:.3g} has as large a gradient as {like} at {found['like_weight']:g}, the "
        f"default of {found['detector']}: {found['gradient']:.3g} and {found['like_gradient']:.3g} at weight 1, means "
        f"over the {found['positives']} positives of the run's validation images, of its trained model; "
        f"{found['disjoint']:.1%} of them are disjoint from their target. It is where a search of weights may start."
    )


def _mean_gradient(folder, name, val, config):
    """(mean norm of the box term's gradient by a positive's encoding, what was seen: count, iou, disjoint)."""
    device, watched = devices.resolve("auto"), Watched(name, image_size=(config.image_size,) * 2)
    model = predict.load(folder, watched)[0].to(device).train()
    watched = model.box_loss  # another, where a detector has a form of the loss of its own
    for layer in model.modules():
        if isinstance(layer, _BatchNorm):  # as in evaluation: one batch does not decide
            layer.eval()
    torch.manual_seed(config.seed)
    total, seen = 0.0, dict.fromkeys(("count", "iou", "disjoint"), 0.0)
    for part in torch.arange(len(val)).split(config.batch_size):
        losses, positives = model(*batches.batch(val, part, device))
        (gradient,) = torch.autograd.grad(losses["box"], watched.encoded)
        total += gradient.norm(dim=-1).sum().item()
        seen = {key: value + positives[key].item() for key, value in seen.items()}
    return total / max(seen["count"], 1), seen
