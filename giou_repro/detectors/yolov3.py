"""YOLOv3 (Redmon and Farhadi, arXiv 1804.02767) with any box loss.

The network is the paper's: Darknet-53, three scales, nine anchors, one best anchor for each true box. The box loss is
swapped as the GIoU paper does it: a coordinate loss (MSE is the original) compares the encodings (offset of the centre
in its cell, log of size over anchor), weighted by 2 − area as in Darknet; an overlap loss compares decoded boxes.
Departures from Darknet: every term is divided by the number of positives of the batch, not by the number of images;
nothing else is.
"""

import torch
from torch import nn
from torch.nn import functional
from torchvision.ops import batched_nms

from giou_repro import boxes
from giou_repro.detectors import backbones

STRIDES = (8, 16, 32)
ANCHORS = (
    (10, 13),
    (16, 30),
    (33, 23),
    (30, 61),
    (62, 45),
    (59, 119),
    (116, 90),
    (156, 198),
    (373, 326),
)  # pixels of a 416-pixel image
IGNORE = 0.5  # a prediction that overlaps a true box more than this is never called background
SIZES = {  # width of the first layer, residual blocks of each stage, convolutions that mix the scales
    "tiny": (
        8,
        (0, 0, 0, 0, 0),
        1,
    ),  # shallow, because a deep narrow network learns slowly: its classes were at chance after 600 steps
    "darknet53": (32, (1, 2, 8, 8, 4), 5),
}


def convolution(inputs, outputs, kernel, stride=1):
    """Convolution, batch normalisation, leaky ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.1, inplace=True))


class Residual(nn.Module):
    """x + conv3(conv1(x)), the middle at half the channels."""

    def __init__(self, channels):
        super().__init__()
        self.layers = nn.Sequential(convolution(channels, channels // 2, 1), convolution(channels // 2, channels, 3))

    def forward(self, x):
        return x + self.layers(x)


class Darknet(nn.Module):
    """The five stages of Darknet-53, or narrower and shorter; gives the features at strides 8, 16 and 32."""

    def __init__(self, width, blocks):
        super().__init__()
        widths = [width * 2**stage for stage in range(6)]
        self.stem = convolution(3, width, 3)
        self.stages = nn.ModuleList(
            nn.Sequential(convolution(before, after, 3, stride=2), *(Residual(after) for _ in range(count)))
            for before, after, count in zip(widths, widths[1:], blocks, strict=False)
        )
        self.channels = tuple(widths[3:])

    def forward(self, images):
        x, features = self.stem(images), []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features[2:]


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
        self.ups = nn.ModuleList(convolution(half, half // 2, 1) for half in halves[1:])
        self.heads = nn.ModuleList(
            nn.Sequential(convolution(half, 2 * half, 3), nn.Conv2d(2 * half, outputs, 1)) for half in halves
        )

    def forward(self, features):
        predictions, above = [None] * 3, None
        for level in (2, 1, 0):
            x = features[level] if above is None else torch.cat([features[level], above], 1)
            x = self.mixes[level](x)
            predictions[level] = self.heads[level](x)
            if level:
                above = functional.interpolate(self.ups[level - 1](x), scale_factor=2, mode="nearest")
        return predictions


def _mix(inputs, half, count):
    """`count` convolutions, 1 × 1 to half of the channels and 3 × 3 back in turn."""
    pairs = [(inputs, half, 1), *([(half, 2 * half, 3), (2 * half, half, 1)] * (count // 2))]
    return nn.Sequential(*(convolution(*pair) for pair in pairs))


class YOLOv3(nn.Module):
    """Images (B, 3, S, S) in 0..1, S a multiple of 32, or a list of the backbone's features of them → losses and
    positives in training, detections otherwise."""

    divided_by = dict.fromkeys(("box", "objectness", "classification"), "count")

    def __init__(self, backbone, num_classes, box_loss, image_size, mixing=5):
        super().__init__()
        self.num_classes, self.box_loss = num_classes, box_loss
        self.backbone = backbone
        self.neck = Neck(backbone.channels, 3 * (5 + num_classes), mixing)
        for head in self.neck.heads:  # start from "background nearly everywhere", or the first steps are lost on it
            nn.init.normal_(head[-1].weight, std=0.01)
            nn.init.zeros_(head[-1].bias)
            head[-1].bias.data.view(3, -1)[:, 4] = -4.6
        cells = [image_size // stride for stride in STRIDES]
        anchors = torch.tensor(ANCHORS).view(3, 3, 2) * (image_size / 416)
        self.register_buffer("anchors", anchors.flatten(0, 1), persistent=False)
        self.register_buffer(
            "places",
            torch.cat([_places(*level) for level in zip(cells, STRIDES, anchors, strict=True)]),
            persistent=False,
        )
        self.register_buffer("firsts", torch.tensor([0, *(3 * c * c for c in cells)]).cumsum(0)[:3], persistent=False)
        self.register_buffer("cells", torch.tensor(cells), persistent=False)
        self.image_size = image_size

    def forward(self, images, targets=None):
        features = images if isinstance(images, list) else self.backbone(images)
        raw = torch.cat([self._flat(level) for level in self.neck(features)], 1).float()
        return self._losses(raw, targets) if self.training else self._detections(raw)

    def _flat(self, level):
        """(B, 3·(5+C), h, w) → (B, 3·h·w, 5+C), anchors outermost."""
        b, _, h, w = level.shape
        return level.view(b, 3, -1, h, w).permute(0, 1, 3, 4, 2).reshape(b, 3 * h * w, -1)

    def encoding(self, raw):
        """What the network regresses: the centre's offset in its cell (0..1) and log(size / anchor); (..., 4)."""
        return torch.cat([raw[..., :2].sigmoid(), raw[..., 2:4]], -1)

    def decode(self, encoding, places):
        """Encodings (..., 4) at `places` (..., 5: column, row, stride, anchor width and height) → xyxy pixels."""
        centre = (places[..., :2] + encoding[..., :2]) * places[..., 2:3]
        half = places[..., 3:] * encoding[..., 2:].clamp(max=8).exp() / 2  # e^8 anchors: beyond any image
        return torch.cat([centre - half, centre + half], -1)

    def _assign(self, truth):
        """The index of the prediction that answers for each true box (n, 4) xyxy: the anchor of most alike shape, in
        the cell of its centre."""
        centre, size = (truth[:, :2] + truth[:, 2:]) / 2, truth[:, 2:] - truth[:, :2]
        shapes = torch.cat([-self.anchors, self.anchors], 1) / 2
        best = boxes.iou(torch.cat([-size, size], 1)[:, None] / 2, shapes).argmax(1)
        level = best // 3
        side = self.cells[level]
        cell = (centre * side[:, None] / self.image_size).long()
        column, row = (cell.clamp(min=0).minimum(side[:, None] - 1)).unbind(1)
        return self.firsts[level] + ((best % 3) * side + row) * side + column

    def _losses(self, raw, targets):
        image, truth, labels = _gathered(targets, raw.device)
        index = self._assign(truth)
        places, chosen = self.places[index], raw[image, index]
        encoded = self.encoding(chosen)
        size = (truth[:, 2:] - truth[:, :2]).clamp(min=1e-3)
        offset = (truth[:, :2] + truth[:, 2:]) / 2 / places[:, 2:3] - places[:, :2]
        wanted = torch.cat([offset, (size / places[:, 3:]).log()], 1)
        each, positives = self.box_loss(encoded, wanted, self.decode(encoded, places), truth)
        if self.box_loss.loss.space == "coordinates":
            each = each * (2 - size.prod(1) / self.image_size**2)

        objectness = torch.zeros_like(raw[..., 4])
        objectness[image, index] = 1
        background = self._background(raw, targets)
        background[image, index] = True
        objects = functional.binary_cross_entropy_with_logits(raw[..., 4], objectness, reduction="none")
        classes = functional.one_hot(labels, self.num_classes).to(raw.dtype)
        count = max(len(truth), 1)
        losses = {
            "box": each.sum() / count,
            "objectness": (objects * background).sum() / count,
            "classification": functional.binary_cross_entropy_with_logits(chosen[:, 5:], classes, reduction="sum")
            / count,
        }
        return losses, positives

    @torch.no_grad()
    def _background(self, raw, targets):
        """Which predictions (B, P) overlap no true box by more than IGNORE."""
        predicted = self.decode(self.encoding(raw), self.places)
        low = torch.ones(raw.shape[:2], dtype=torch.bool, device=raw.device)
        for answer, boxes_, target in zip(low, predicted, targets, strict=True):
            if len(target["boxes"]):
                answer.copy_(boxes.iou(target["boxes"].to(raw.device)[:, None], boxes_).amax(0) <= IGNORE)
        return low

    @torch.no_grad()
    def _detections(self, raw, lowest=0.005, most=100, nms=0.45):
        corners = self.decode(self.encoding(raw), self.places).clamp(0, self.image_size)
        scores = raw[..., 4:5].sigmoid() * raw[..., 5:].sigmoid()
        found = []
        for boxes_, score in zip(corners, scores, strict=True):
            score, order = score.flatten().topk(min(1000, score.numel()))
            order = order[score > lowest]
            score = score[: len(order)]
            place, label = order // self.num_classes, order % self.num_classes
            keep = batched_nms(boxes_[place], score, label, nms)[:most]
            found.append({"boxes": boxes_[place[keep]], "scores": score[keep], "labels": label[keep]})
        return found


def _places(cells, stride, anchors):
    """(3·cells², 5): column, row, stride, anchor width, anchor height of every prediction of one level, anchors
    outermost."""
    anchor, row, column = torch.meshgrid(torch.arange(3), torch.arange(cells), torch.arange(cells), indexing="ij")
    cell = torch.stack([column, row, torch.full_like(row, stride)], -1).flatten(0, 2).float()
    return torch.cat([cell, anchors[anchor.flatten()]], 1)


def _gathered(targets, device):
    """(image index (n,), boxes (n, 4), labels (n,)) over a batch."""
    counts = torch.tensor([len(target["boxes"]) for target in targets])
    image = torch.arange(len(targets)).repeat_interleave(counts).to(device)
    return image, *(torch.cat([target[key] for target in targets]).to(device) for key in ("boxes", "labels"))


def yolov3(num_classes, box_loss, image_size, backbone=None):
    """The detector; `backbone` "tiny" (2 cores), "darknet53" (the paper's) or "efficientnet_lite0" (ImageNet
    weights)."""
    backbone = backbone or "tiny"
    if backbone in SIZES:
        width, blocks, mixing = SIZES[backbone]
        return YOLOv3(Darknet(width, blocks), num_classes, box_loss, image_size, mixing)
    return YOLOv3(backbones.strides_8_16_32(backbone), num_classes, box_loss, image_size)
