"""Plugs: each framework's own loss as ours gives it, three losses in a training step, and all as before afterwards.

Models are built from their configs, a few thousand weights each; nothing is downloaded.
"""

import importlib
import re
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from torch import nn
from torch.nn import functional

from giou_repro import LOSSES, boxes, loss, plug
from giou_repro.registry import Loss

PAGE = Path(__file__).parents[1] / "docs/plug.md"
IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
BOXES = [torch.tensor([[8.0, 8, 40, 48]]), torch.tensor([[4.0, 20, 36, 60], [30, 2, 62, 30]])]  # xyxy, pixels
EMPTY = [torch.zeros(0, 4)] * 2


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory):
    """ultralytics keeps its settings in a folder of ours, and neither framework looks for a network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("YOLO_CONFIG_DIR", str(tmp_path_factory.mktemp("ultralytics")))
        for name, value in (("YOLO_OFFLINE", "true"), ("YOLO_AUTOINSTALL", "false"), ("HF_HUB_OFFLINE", "1")):
            patch.setenv(name, value)
        yield


def labels(truth):
    return [1 + torch.arange(len(each)) % 2 for each in truth]


def normalised(truth):
    return [boxes.convert(each / 64, "xyxy", "cxcywh") for each in truth]


class Backbone(nn.Sequential):
    """A pyramid of one level, of stride 16."""

    out_channels = 32

    def __init__(self):
        super().__init__(nn.Conv2d(3, 32, 16, stride=16), nn.ReLU())


def torchvision_model(family):
    from torchvision.models import detection
    from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator

    torch.manual_seed(0)
    if family == "ssd":
        anchors, backbone = DefaultBoxGenerator([[1]], scales=[0.5, 0.6]), nn.Sequential(*Backbone())
        backbone.out_channels = [32]
        return detection.ssd.SSD(backbone, anchors, size=(64, 64), num_classes=3)
    sizes = {"min_size": 64, "max_size": 64, "num_classes": 3}
    if family == "fcos":
        model = detection.FCOS(Backbone(), anchor_generator=AnchorGenerator(((8,),), ((1.0,),)), **sizes)
        nn.init.ones_(model.head.regression_head.bbox_reg.bias)  # boxes of 16 pixels, else of none
        return model
    anchors = AnchorGenerator(((32,),), ((0.5, 1.0, 2.0),))
    if family == "faster_rcnn":
        sizes |= {"rpn_batch_size_per_image": 16, "box_batch_size_per_image": 16, "rpn_post_nms_top_n_train": 32}
        return detection.FasterRCNN(Backbone(), rpn_anchor_generator=anchors, **sizes)
    model = detection.RetinaNet(Backbone(), anchor_generator=anchors, **sizes)
    model.head.regression_head._loss_type = "giou" if family == "retinanet_giou" else "l1"
    return model


def torchvision_losses(model, truth=BOXES):
    """The box term, and the sum of all."""
    torch.manual_seed(1)  # of what Faster R-CNN samples
    targets = [{"boxes": each, "labels": n} for each, n in zip(truth, labels(truth), strict=True)]
    terms = model(list(IMAGES), targets)
    return terms["loss_box_reg" if "loss_box_reg" in terms else "bbox_regression"], sum(terms.values())


def ultralytics_model():
    pytest.importorskip("ultralytics", exc_type=ImportError)
    from ultralytics.cfg import get_cfg
    from ultralytics.nn.tasks import DetectionModel

    layers = [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [16, 3, 4]], [-1, 1, "Conv", [16, 3, 2]]]
    torch.manual_seed(0)
    config = {"nc": 2, "backbone": layers, "head": [[[1, 2], 1, "Detect", ["nc"]]]}
    model = DetectionModel(config, verbose=False)
    model.args = get_cfg()
    return model


def ultralytics_losses(model, truth=BOXES):
    image = torch.arange(2.0).repeat_interleave(torch.tensor([len(each) for each in truth]))
    batch = {"img": IMAGES, "bboxes": torch.cat(normalised(truth)), "batch_idx": image}
    terms, _ = model(batch | {"cls": torch.cat(labels(truth))[:, None] - 1.0})
    return terms[0], terms.sum()


def detr_model(family="Detr"):
    transformers = pytest.importorskip("transformers", exc_type=ImportError)
    torch.manual_seed(0)
    backbone = {"embedding_size": 8, "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    size = {"d_model": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_queries": 8}
    size |= {"encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_labels": 3}
    if family == "Detr":
        config = transformers.ResNetConfig(**backbone, out_features=["stage4"])
        config = transformers.DetrConfig(backbone_config=config, use_timm_backbone=False, **size, auxiliary_loss=True)
    else:
        config = transformers.RTDetrResNetConfig(**backbone, out_features=["stage2", "stage3", "stage4"])
        size |= {"encoder_hidden_dim": 16, "encoder_in_channels": [8, 8, 8], "decoder_in_channels": [16, 16, 16]}
        config = transformers.RTDetrConfig(backbone_config=config, **size, num_denoising=4)
    return getattr(transformers, f"{family}ForObjectDetection")(config)


def detr_losses(model, truth=BOXES):
    targets = [{"boxes": each, "class_labels": n} for each, n in zip(normalised(truth), labels(truth), strict=True)]
    torch.manual_seed(1)  # of dropout and denoising
    output = model(pixel_values=IMAGES, labels=targets)
    return output.loss_dict["loss_giou"], output.loss


def smooth_l1(pred, target):
    """Faster R-CNN's, with its bend at 1/9."""
    return functional.smooth_l1_loss(pred, target, beta=1 / 9, reduction="none").sum(-1)


DETR = partial(plug.detr, image_size=(64, 64))
CASES = {  # the plug, a model of its own loss, what measures it, and that loss in our words
    "faster_rcnn": (plug.torchvision, torchvision_losses, Loss("bent", "bent", smooth_l1, "coordinates")),
    "retinanet": (plug.torchvision, torchvision_losses, "l1"),
    "retinanet_giou": (plug.torchvision, torchvision_losses, "giou"),
    "fcos": (plug.torchvision, torchvision_losses, "giou"),
    "ssd": (plug.torchvision, torchvision_losses, "smooth_l1"),
    "ultralytics": (plug.ultralytics, ultralytics_losses, "ciou"),
    "detr": (DETR, detr_losses, "giou"),
    "rt_detr": (DETR, detr_losses, "giou"),
}


@pytest.fixture(params=CASES)
def case(request):
    """(the plug, a model, what measures its box term and the sum of all, its own loss)."""
    plugged, measure, own = CASES[request.param]
    if plugged is plug.torchvision:
        model = torchvision_model(request.param)
    elif plugged is plug.ultralytics:
        model = ultralytics_model()
    else:
        model = detr_model({"detr": "Detr", "rt_detr": "RTDetr"}[request.param])
    return plugged, model, measure, own


def test_the_frameworks_own_loss_is_the_same(case):
    plugged, model, measure, own = case
    term, total = measure(model)
    total.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    with plugged(own):
        ours, total = measure(model)
        total.backward()
    assert term > 0
    torch.testing.assert_close(ours, term, rtol=1e-5, atol=1e-6)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["giou", "mpdiou", "mine"])
def test_training_steps_lower_it(case, name, user_module):
    plugged, model, measure, _ = case
    loss("mine")(lambda pred, target: 1 - boxes.iou(pred, target) ** 2)
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)  # so short a step that the same boxes stay matched
    terms = []
    with plugged(name):
        for _ in range(3):
            term, total = measure(model)
            optimizer.zero_grad()
            term.backward()
            optimizer.step()
            terms.append(term.item())
    assert total.isfinite()
    assert terms[0] > terms[1] > terms[2]


def test_a_loss_is_given_the_targets_in_pixels(case):
    plugged, model, measure, _ = case
    seen = []

    def mine(pred, target):
        seen.append(target)
        return 1 - boxes.iou(pred, target)

    with plugged(mine):
        measure(model)
    distance = torch.cdist(torch.cat([each.reshape(-1, 4) for each in seen]), torch.cat(BOXES)).amin(1)
    assert len(distance) and distance.max() < 1e-3


@pytest.mark.parametrize("case", [name for name in CASES if "detr" not in name], indirect=True)  # whose cost grows too
def test_twice_the_weight_is_twice_the_term(case):
    plugged, model, measure, _ = case
    terms = []
    for weight in (1, 2):
        with plugged("giou", weight=weight):
            terms.append(measure(model)[0])
    torch.testing.assert_close(2 * terms[0], terms[1])


def test_no_targets(case):
    plugged, model, measure, _ = case
    with plugged("giou"):
        term, total = measure(model, EMPTY)
    total.backward()
    assert term == 0


def test_all_is_as_before_when_the_plug_is_out(case):
    plugged, model, measure, _ = case
    before = measure(model)
    with pytest.raises(KeyError), plugged("mpdiou"):
        assert measure(model)[0] != before[0]
        raise KeyError
    assert measure(model) == before
    stays = plugged("mpdiou")
    assert measure(model)[0] != before[0]
    stays.remove()
    stays.remove()
    assert measure(model) == before


def test_plugs_come_out_last_in_first_out():
    model = torchvision_model("fcos")
    own = torchvision_losses(model)
    first = plug.torchvision("iou")
    iou = torchvision_losses(model)
    with plug.torchvision("diou"):
        assert torchvision_losses(model) != iou
        with pytest.raises(RuntimeError, match="remove the last plug first"):
            first.remove()
    assert torchvision_losses(model) == iou
    first.remove()
    assert torchvision_losses(model) == own


def test_ultralytics_keeps_what_is_not_the_box_term():
    """Classification tells of the assigner and of its IoU, the third of the distances."""
    model = ultralytics_model()
    batch = {"img": IMAGES[:1], "bboxes": normalised(BOXES)[0], "cls": torch.zeros(1, 1), "batch_idx": torch.zeros(1)}
    own, _ = model(batch)
    with plug.ultralytics("l1"):
        plugged, _ = model(batch)
    assert own[1:].equal(plugged[1:]) and own[0] != plugged[0]


def test_ultralytics_tells_the_image_size():
    seen = []

    def mine(pred, target, *, image_size=None):
        seen.append([float(side) for side in image_size])
        return LOSSES["mpdiou"](pred, target, image_size=image_size)

    model = ultralytics_model()
    batch = {"img": torch.rand(1, 3, 64, 96), "bboxes": normalised(BOXES)[0], "cls": torch.zeros(1, 1)}
    with plug.ultralytics(mine):
        model(batch | {"batch_idx": torch.zeros(1)})
    assert seen == [[96, 64]]


def test_the_matcher_of_detr_takes_the_loss_as_its_cost():
    pytest.importorskip("transformers", exc_type=ImportError)
    from transformers.loss.loss_for_object_detection import HungarianMatcher

    matcher = HungarianMatcher(class_cost=0, bbox_cost=0, giou_cost=1)
    pred = torch.tensor([[[0.5, 0.5, 0.9, 0.9], [0.2, 0.2, 0.1, 0.1]]])  # cxcywh: one overlaps, one is nearer in size
    target = [{"class_labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 0.1, 0.1]])}]
    outputs = {"logits": torch.zeros(1, 2, 2), "pred_boxes": pred}
    assert matcher(outputs, target)[0][0] == 0
    with plug.detr(lambda pred, target: (boxes.area(pred) - boxes.area(target)).abs()):
        assert matcher(outputs, target)[0][0] == 1
    assert matcher(outputs, target)[0][0] == 0


@pytest.mark.parametrize("image_size", [640, (640,), (640, 0)])
def test_detr_refuses_another_image_size(image_size):
    pytest.importorskip("transformers", exc_type=ImportError)
    with pytest.raises(ValueError, match=r"image_size must be \(width, height\) above 0, got"):
        plug.detr("giou", image_size=image_size)


def test_every_member_of_the_detr_family_is_plugged():
    pytest.importorskip("transformers", exc_type=ImportError)
    from transformers import loss as package

    files = [path for path in Path(package.__path__[0]).glob("loss_*.py") if "generalized_box_iou(" in path.read_text()]
    assert len(files) > 4
    with plug.detr("giou"):
        for path in files:
            module = __import__(f"{package.__name__}.{path.stem}", fromlist=["_"])
            assert module.generalized_box_iou.__module__ == plug.__name__


def test_what_cannot_be_plugged_is_refused_and_changes_nothing():
    from torchvision.models.detection import roi_heads

    own = roi_heads.fastrcnn_loss
    with pytest.raises(ValueError, match="did you mean 'giou'"):
        plug.torchvision("gious")
    with pytest.raises(TypeError, match="loss must be a name"):
        plug.torchvision(3)
    with pytest.raises(ValueError, match="weight must be a number above 0"):
        plug.torchvision("giou", weight=0)
    assert roi_heads.fastrcnn_loss is own
    with pytest.raises(RuntimeError, match=r"torchvision 0\.\d+.* has no .*roi_heads.renamed of 2 arguments"):
        plug.Plug("torchvision", (roi_heads, "fastrcnn_loss", own), (roi_heads, "renamed", smooth_l1))
    with pytest.raises(RuntimeError, match=r"has no .*roi_heads.fastrcnn_loss of 2 arguments"):
        plug.Plug("torchvision", (roi_heads, "fastrcnn_loss", smooth_l1))
    assert roi_heads.fastrcnn_loss is own


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "giou_repro.detectors.box_loss", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'giou-repro\[plug\]'"):
        importlib.reload(plug)


@pytest.fixture
def yolo_data(tmp_path, monkeypatch):
    """my.yaml in the current folder: two images, a class."""
    monkeypatch.chdir(tmp_path)
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for name in "ab":
        Image.new("RGB", (64, 64), "navy").save(f"images/{name}.png")
        Path(f"labels/{name}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    Path("my.yaml").write_text(
        yaml.safe_dump({"path": str(tmp_path), "train": "images", "val": "images", "names": ["a"]})
    )


@pytest.mark.parametrize("framework", ["torchvision", "ultralytics", "transformers"])
def test_the_page_runs(framework, yolo_data):
    pytest.importorskip(framework, exc_type=ImportError)
    (block,) = (
        code for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S) if f"from {framework}" in code
    )
    assert block.count("\n") <= 8
    code = block.replace(
        "epochs=100", "epochs=1, imgsz=32, plots=False, val=False, workers=0, device='cpu', project='runs'"
    )
    targets = [{"boxes": each, "labels": n} for each, n in zip(BOXES, labels(BOXES), strict=True)]
    if framework == "transformers":
        targets = [{"boxes": b, "class_labels": n} for b, n in zip(normalised(BOXES), labels(BOXES), strict=True)]
    names = {"images": IMAGES, "targets": targets}
    exec(code, names)
    assert framework == "ultralytics" or names["loss"].isfinite()
