"""A trained run in use: what it finds in images of the user's, and the weight of a loss by its positives."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from giou_repro import detectors
from giou_repro.__main__ import main
from giou_repro.data.generated import CLASSES, Scenes
from giou_repro.runs import store
from giou_repro.training import detections, equal_gradient, loop, predict

IDS = {"circle": 9, "square": 2, "triangle": 5}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(a COCO data set of 4 training and 4 validation images of generated scenes, the folder of a run on it)."""
    folder = tmp_path_factory.mktemp("trained")
    for split in ("train", "val"):
        images, annotations = [], []
        for number, (image, target) in enumerate(map(Scenes(split, 0, 4, 64).__getitem__, range(4)), start=11):
            name = f"{split}_{number}.png"
            (folder / split).mkdir(exist_ok=True)
            Image.fromarray(image[:, : 64 - 8 * (number % 2)].permute(1, 2, 0).numpy()).save(folder / split / name)
            images.append(dict(id=number, file_name=name, width=64, height=64 - 8 * (number % 2)))
            for (x1, y1, x2, y2), label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
                about = dict(id=len(annotations), image_id=number, category_id=IDS[CLASSES[label]], iscrowd=0)
                annotations.append(about | dict(bbox=[x1, y1, x2 - x1, y2 - y1], area=(x2 - x1) * (y2 - y1)))
        content = dict(images=images, annotations=annotations, categories=[dict(id=IDS[c], name=c) for c in IDS])
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    quick = dict(epochs=3, batch_size=4, evaluations=0, learning_rate=0.02, ema=0.0)
    config = loop.configure(scale="smoke", dataset=str(folder), image_size=64, **quick)
    run = store.start("05_train_detector", folder / "run", config.model_dump())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIOU_REPRO_CACHE", str(folder / "cache"))
        loop.train(config, run)
        yield folder, run.folder


def test_validation_images_get_the_boxes_that_the_run_kept_and_their_ids(trained, tmp_path, capsys):
    data, run = trained
    truth = data / "annotations" / "instances_val.json"
    assert main(["predict", str(run), str(data / "val"), "--truth", str(truth), "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "detections.json").read_text())
    _, kept, classes = detections.read(run / "detections.npz")
    assert len(results) == sum(len(image["labels"]) for image in kept) > 100
    for id, image in enumerate(kept, start=11):
        own = [one for one in results if one["image_id"] == id]
        x, y, w, h = np.transpose([one["bbox"] for one in own])
        np.testing.assert_allclose(np.transpose([x, y, x + w, y + h]), image["boxes"], atol=3e-3)
        np.testing.assert_allclose([one["score"] for one in own], image["scores"], rtol=1e-5)
        assert [one["category_id"] for one in own] == [IDS[classes[label]] for label in image["labels"]]
    with Image.open(tmp_path / "val_11.png") as picture:
        assert picture.size == (1600, 1400)  # the longer side 8 inches at 200 dpi
    capsys.readouterr()
    assert main(["evaluate", str(truth), str(tmp_path / "detections.json")]) == 0
    assert "NOTE" not in capsys.readouterr().out


def test_without_a_truth_ids_are_the_names_and_a_broken_image_is_told(trained, tmp_path, capsys):
    upright = Image.open(trained[0] / "val" / "val_11.png")
    exif = Image.Exif()
    exif[0x0112] = 8  # to be turned by 90°
    upright.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "turned.png", exif=exif)
    upright.save(tmp_path / "000012.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    found = list(predict.predict(trained[1], [tmp_path]))
    assert [one.file.name for one in found] == ["000012.png", "turned.png"]
    assert [one.results[0]["image_id"] for one in found] == [12, "turned"]
    assert {one["category_id"] for one in found[0].results} <= {1, 2, 3}
    for one in found:
        assert (one.image == np.asarray(upright)).all()
    assert [one["bbox"] for one in found[0].results] == [one["bbox"] for one in found[1].results]
    assert "broken.png: unreadable image" in capsys.readouterr().out


def test_what_is_not_there_is_named(trained, tmp_path):
    data, run = trained
    with pytest.raises(FileNotFoundError, match=r"has no run.json, detections.npz, model.safetensors; name a complete"):
        predict.load(data)
    with pytest.raises(FileNotFoundError, match="no image at"):
        next(predict.predict(run, [tmp_path]))
    truth = data / "annotations" / "instances_train.json"
    with pytest.raises(ValueError, match=r"lists no image 'val_11.png' \(4 of 4 images\)"):
        next(predict.predict(run, [data / "val"], truth))
    with pytest.raises(ValueError, match="must be COCO annotations of square, triangle, circle: KeyError"):
        next(predict.predict(run, [data / "val"], run / "run.json"))
    twin = tmp_path / "val_11.png"
    twin.write_bytes(b"")
    with pytest.raises(ValueError, match="have one name"):
        next(predict.predict(run, [data / "val", twin]))


def test_a_loss_twice_as_large_has_the_gradient_at_half_the_weight(trained, user_module, capsys):
    user_module("twice", "from giou_repro import boxes\ndef double(p, t):\n    return 2 - 2 * boxes.giou(p, t)\n")
    assert main(["check", "twice:double", "--like", "giou", "--run", str(trained[1])]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("double at weight 2.5 has as large a gradient as GIoU at 5, the default of yolov3: ")


def test_the_gradient_is_that_of_the_box_term_with_all_its_factors(trained):
    """ℓ1 of encodings has a slope of ±1 by each of four; YOLOv3 multiplies by 2 − area and divides by the positives."""
    found = equal_gradient.compare(trained[1], "l1", "giou")
    truths, *_ = detections.read(trained[1] / "detections.npz")
    areas = np.concatenate([(image["boxes"][:, 2:] - image["boxes"][:, :2]).prod(1) / 64**2 for image in truths])
    assert found["positives"] == len(areas)
    assert found["gradient"] == pytest.approx(np.mean(2 * (2 - areas)) / len(areas), rel=1e-3)
    assert found["weight"] * found["gradient"] == pytest.approx(5 * found["like_gradient"])


@pytest.mark.parametrize("detector", ["faster_rcnn", "fcos"])
def test_every_detector_gives_its_positives(detector):
    watched = equal_gradient.Watched("smooth_l1")
    model = detectors.DETECTORS[detector](3, watched, image_size=64).train()
    target = {"boxes": torch.tensor([[8.0, 8, 40, 40]]), "labels": torch.tensor([1])}
    losses, positives = model(torch.zeros(1, 3, 64, 64), [target])
    (gradient,) = torch.autograd.grad(losses["box"], model.box_loss.encoded)
    assert gradient.shape == (positives["count"], 4) and gradient.abs().sum() > 0
