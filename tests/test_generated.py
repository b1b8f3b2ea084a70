"""Generated scenes: what a seed gives, and what they refuse."""

import pytest
import torch
from torchvision.ops import masks_to_boxes

from giou_repro.data import datasets, generated


def test_one_seed_gives_one_set_and_its_splits_differ():
    first, again, more = (
        generated.Scenes("train", 3, 4),
        generated.Scenes("train", 3, 4),
        generated.Scenes("train", 3, 9),
    )
    for i in range(4):
        assert torch.equal(first[i][0], again[i][0])
        assert torch.equal(first[i][0], more[i][0])
        assert all(torch.equal(first[i][1][key], more[i][1][key]) for key in ("boxes", "labels", "masks"))
    for other in (generated.Scenes("val", 3, 4), generated.Scenes("train", 4, 4)):
        assert not torch.equal(first[0][0], other[0][0])
        assert other.checksum != first.checksum == again.checksum


@pytest.mark.parametrize("size", [64, 128])
def test_a_scene_is_what_the_contract_says(size):
    ds = datasets.load("shapes", "val", seed=1, images=40, image_size=size)
    sides, most = [], 0
    for index, (image, target) in enumerate(ds[i] for i in range(len(ds))):
        assert image.dtype == torch.uint8
        assert image.shape == (3, size, size)
        assert target["image_id"] == index
        n = len(target["labels"])
        assert target["masks"].shape == (n, size, size)
        assert (target["masks"].sum(0) <= 1).all(), "each pixel belongs to one shape"
        inclusive = masks_to_boxes(target["masks"]) if n else torch.zeros(0, 4)
        assert torch.equal(target["boxes"], inclusive + torch.tensor([0.0, 0, 1, 1]))
        assert torch.equal(target["area"], target["masks"].sum((1, 2)).float())
        sides += (target["boxes"][:, 2:] - target["boxes"][:, :2]).amax(1).tolist()
        most = max(most, n)
    assert len(ds.classes) == 3
    assert 3 <= min(sides) <= 9
    assert size / 3 < max(sides) <= size / 2 + 1
    assert most >= 6


def test_scenes_refuse_what_they_cannot_draw():
    with pytest.raises(ValueError, match="splits train, val, test, not 'trainval'"):
        datasets.load("shapes", "trainval")
    with pytest.raises(ValueError, match="32 px or more"):
        datasets.load("shapes", "train", image_size=16)
