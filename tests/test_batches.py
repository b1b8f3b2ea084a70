"""Batches: pictures and boxes move together, squares are cached once, an epoch is decided by its seed."""

import errno
import os

import numpy as np
import pytest
import torch
from PIL import Image

from giou_repro.data import datasets
from giou_repro.runs import store
from giou_repro.training import batches


def image_files(folder, shades):
    """A data set of grey 8 x 8 images, one of each shade, with a box each; in a Pascal VOC folder."""
    folder.mkdir(exist_ok=True)
    for shade in shades:
        corners = "".join(
            f"<{tag}>{value}</{tag}>" for tag, value in (("xmin", 1), ("ymin", 1), ("xmax", 8), ("ymax", 8))
        )
        (folder / f"{shade}.xml").write_text(
            f"<annotation><object><name>cell</name><bndbox>{corners}</bndbox></object></annotation>"
        )
        Image.new("RGB", (8, 8), (shade,) * 3).save(folder / f"{shade}.bmp")
    return folder


def test_a_wide_image_is_centred_on_grey_and_its_boxes_come_back():
    image = torch.full((3, 50, 100), 255, dtype=torch.uint8)
    square, (scale, left, top) = batches.letterbox(image, 64)
    assert (scale, left, top) == (0.64, 0, 16)
    assert (
        square[0, 15, 0] == batches.GREY
        and square[0, 16, 0] == 255
        and square[0, 47, 0] == 255
        and square[0, 48, 0] == batches.GREY
    )
    packed = batches.Packed(square[None], [{}], torch.tensor([[scale, left, top]]), torch.tensor([[50, 100]]), [])
    back = packed.original({"boxes": torch.tensor([[0.0, 16, 64, 48], [-9, -9, 99, 99]])}, 0)["boxes"]
    assert torch.allclose(back, torch.tensor([[0.0, 0, 100, 50], [0, 0, 100, 50]]))


@pytest.mark.parametrize("seed", range(8))
def test_augmentation_moves_a_box_and_its_mask_with_its_pixels(seed):
    images = torch.full((1, 3, 64, 64), batches.GREY / 255)
    images[0, :, 20:40, 24:36] = 1
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[0, 20:40, 24:36] = True
    target = {"boxes": torch.tensor([[24.0, 20, 36, 40]]), "labels": torch.tensor([0]), "masks": mask}
    moved, [answer] = batches.augmented(images, [target], torch.Generator().manual_seed(seed), colour=0)
    rows, columns = torch.nonzero(moved[0, 0] > 0.75, as_tuple=True)
    seen = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
    assert (answer["boxes"][0] - seen).abs().max() <= 1
    rows, columns = torch.nonzero(answer["masks"][0], as_tuple=True)
    assert (
        answer["boxes"][0] - torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    ).abs().max() <= 1


def test_a_box_that_leaves_the_picture_is_dropped():
    target = {"boxes": torch.tensor([[0.0, 0, 4, 4], [30, 30, 40, 40]]), "labels": torch.tensor([0, 1])}
    _, [answer] = batches.augmented(
        torch.zeros(1, 3, 64, 64), [target], torch.Generator().manual_seed(0), scale=(2, 2.0001), shift=0
    )
    assert answer["labels"].tolist() == [1]
    assert answer["boxes"].min() >= 0 and answer["boxes"].max() <= 64


def test_an_epoch_has_every_image_once_in_an_order_of_its_own():
    first, again, next_one = (batches.order(20, 8, 0, epoch) for epoch in (0, 0, 1))
    assert [len(part) for part in first] == [8, 8, 4]
    assert sorted(torch.cat(first).tolist()) == list(range(20))
    assert torch.equal(torch.cat(first), torch.cat(again)) and not torch.equal(torch.cat(first), torch.cat(next_one))


def test_an_image_alone_in_the_last_batch_is_left_for_another_epoch():
    assert [len(part) for part in batches.order(9, 2, 0, 0)] == [2, 2, 2, 2]
    assert [len(part) for part in batches.order(3, 1, 0, 0)] == [1, 1, 1]


def packed_shades(folder, cache):
    """The shades of the packed images of a folder."""
    return batches.pack(datasets.load(folder, "all"), 8, cache=cache).images[:, 0, 0, 0].tolist()


def test_images_are_cached_once_and_the_size_is_printed_before(tmp_path, capsys):
    folder, cache = image_files(tmp_path / "set", (10, 20)), tmp_path / "cache"
    assert packed_shades(folder, cache) == [10, 20]
    assert f"caching 2 images of 8x8 px, 0.0 MB, in {cache}/set-all-8-" in capsys.readouterr().out
    [kept] = cache.glob("set-*")
    before = (kept / "images.npy").stat().st_mtime_ns
    assert packed_shades(folder, cache) == [10, 20]
    assert (kept / "images.npy").stat().st_mtime_ns == before and capsys.readouterr().out == ""


def test_an_image_that_was_edited_is_read_again_though_its_size_is_the_same(tmp_path):
    folder = image_files(tmp_path / "set", (10, 20))
    packed_shades(folder, tmp_path / "cache")
    Image.new("RGB", (8, 8), (99, 99, 99)).save(folder / "20.bmp")
    assert packed_shades(folder, tmp_path / "cache") == [10, 99]


@pytest.mark.parametrize(
    "damage", ["no images", "half of the images", "other images", "no truths", "unreadable truths", "other truths"]
)
def test_a_damaged_cache_is_made_again(tmp_path, damage):
    folder, cache = image_files(tmp_path / "set", (10, 20)), tmp_path / "cache"
    packed_shades(folder, cache)
    [kept] = cache.glob("set-*")
    images, truths = kept / "images.npy", kept / "truths.pt"
    if damage.startswith("no "):
        (images if damage == "no images" else truths).unlink()
    elif damage == "half of the images":
        images.write_bytes(images.read_bytes()[:-192])
    elif damage == "other images":
        np.save(images, np.zeros((2, 3, 4, 4), np.uint8))
    elif damage == "unreadable truths":
        truths.write_bytes(truths.read_bytes()[:100])
    else:
        torch.save({"truths": [], "skipped": []}, truths)
    assert packed_shades(folder, cache) == [10, 20]
    assert sorted(path.name for path in kept.iterdir()) == ["images.npy", "truths.pt"]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_on_a_full_disk_images_are_held_in_memory_and_nothing_is_left(tmp_path, capsys, monkeypatch, error):
    def full(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert packed_shades(image_files(tmp_path / "set", (10, 20)), tmp_path / "cache") == [10, 20]
    said = capsys.readouterr().out
    assert (
        f"{tmp_path / 'cache'} cannot be written ({os.strerror(error)}; 0.0 MB needed)" in said
        and "GIOU_REPRO_CACHE" in said
    )
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_without_a_folder_for_the_cache_images_are_held_in_memory(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert packed_shades(image_files(tmp_path / "set", (10,)), tmp_path / "file" / "cache") == [10]
    assert "cannot be written (Not a directory; " in capsys.readouterr().out


def test_what_a_killed_process_left_in_the_cache_is_removed_and_nothing_else(tmp_path):
    cache = tmp_path / "cache"
    for name, files in {"half": ["images.npy"], "whole": ["images.npy", "truths.pt"], "mine": ["other"]}.items():
        (cache / name).mkdir(parents=True)
        for file in files:
            (cache / name / file).touch()
    packed_shades(image_files(tmp_path / "set", (10,)), cache)
    assert not (cache / "half").exists() and (cache / "whole").exists() and (cache / "mine").exists()


def test_few_generated_scenes_are_drawn_once_and_many_are_not_kept(tmp_path, monkeypatch):
    scenes = datasets.load("shapes", "val", images=2, image_size=64)
    drawn = batches.pack(scenes, 64)
    assert torch.equal(batches.pack(scenes, 64, cache=tmp_path / "few").images, drawn.images)
    monkeypatch.setattr(type(scenes), "__getitem__", lambda scenes, index: pytest.fail("drawn again"))
    kept = batches.pack(scenes, 64, cache=tmp_path / "few")
    assert torch.equal(kept.images, drawn.images) and kept.truths[1]["boxes"].equal(drawn.truths[1]["boxes"])
    monkeypatch.undo()
    monkeypatch.setattr(batches, "SCENES_KEPT", 1)
    batches.pack(scenes, 64, cache=tmp_path / "many")
    assert not (tmp_path / "many").exists()


def test_the_cache_has_a_place_that_can_be_set(tmp_path, monkeypatch):
    monkeypatch.delenv("GIOU_REPRO_CACHE", raising=False)
    assert batches.cache_folder() == store.project_folder() / "data" / "cache"
    monkeypatch.setenv("GIOU_REPRO_CACHE", str(tmp_path))
    assert batches.cache_folder() == tmp_path


def test_difficult_objects_and_crowds_are_not_trained_on():
    truth = {
        "boxes": torch.eye(4)[:3],
        "labels": torch.arange(3),
        "difficult": torch.tensor([0, 1, 0]).bool(),
        "crowd": torch.tensor([0, 0, 1]).bool(),
    }
    assert batches.training_truth(truth)["labels"].tolist() == [0]


def test_frozen_features_are_the_backbones_and_views_take_turns():
    squares = torch.randint(0, 255, (5, 3, 64, 64), dtype=torch.uint8)
    truths = [
        {key: torch.zeros(0) for key in ("boxes", "labels")}
        | {key: torch.zeros(0, dtype=torch.bool) for key in ("difficult", "crowd")}
    ] * 5
    packed = batches.Packed(squares, [truth | {"boxes": torch.zeros(0, 4)} for truth in truths], None, None, [])

    def pooled(images):  # means over 2 x 2 and 4 x 4 pixels
        return [torch.nn.functional.avg_pool2d(images, side) for side in (2, 4)]

    plain = batches.FrozenFeatures(packed, "cpu", False, seed=0, views=1, backbone=pooled)(3)
    features, targets = plain(torch.tensor([4, 1]))
    for found, expected in zip(features, pooled(squares[[4, 1]] / 255), strict=True):
        torch.testing.assert_close(found, expected)
    assert len(targets) == 2
    turns = batches.FrozenFeatures(packed, "cpu", True, seed=0, views=2, backbone=pooled)
    first, second, third = (turns(number)(torch.arange(5))[0][0] for number in range(3))
    assert torch.equal(first, third) and not torch.equal(first, second)
