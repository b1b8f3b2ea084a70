"""Losses of rotated boxes: by hand, against boxes in the plane and Gaussians in SciPy, and what docs/losses.md says."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial import ConvexHull
from torch import tensor

from giou_repro import boxes, registry, rotated
from giou_repro.runs.store import project_folder

every_loss = pytest.mark.parametrize("name", rotated.LOSSES)
WIDE = tensor([0.0, 0, 4, 2, 0.3], dtype=torch.float64)
SQUARE = tensor([0.0, 0, 1, 1, 0], dtype=torch.float64)


def drawn(n, seed):
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(n, 5, generator=generator, dtype=torch.float64)
    return uniform * tensor([2.0, 2, 2, 2, math.pi]) + tensor([0, 0, 0.2, 0.2, 0])


def slope(name, pred, target, k):
    pred = pred.clone().requires_grad_()
    return torch.autograd.grad(rotated.LOSSES[name](pred, target).sum(), pred)[0][..., k].item()


@pytest.mark.parametrize("name", ["iou", "giou", "mgiou"])
def test_without_an_angle_they_are_those_of_boxes(name, random_boxes):
    a, b = random_boxes(50, seed=1), random_boxes(50, seed=2)
    pair = [torch.cat((boxes.convert(box, "xyxy", "cxcywh"), torch.zeros(50, 1)), -1) for box in (a, b)]
    value = rotated.LOSSES[name](*pair)
    if name == "giou":  # whose C is the convex hull, not a box
        assert (value <= registry.LOSSES[name](a, b) + 1e-12).all()
        corners = torch.cat([rotated.polygons.rotated(box) for box in pair], 1).numpy()
        hull = tensor([ConvexHull(points).volume for points in corners])
        iou = boxes.iou(a, b)
        union = (boxes.area(a) + boxes.area(b)) / (1 + iou)
        torch.testing.assert_close(value, 1 - iou + (hull - union) / hull)
    else:
        torch.testing.assert_close(value, registry.LOSSES[name](a, b))


def test_probiou_and_kfiou_against_their_papers():
    a, b = drawn(20, 1), drawn(20, 2)
    values = [rotated.LOSSES[name](a, b).tolist() for name in ("probiou", "kfiou")]
    for k, pair in enumerate(zip(a.numpy(), b.numpy(), strict=True)):
        covariances = []
        for _, _, w, h, t in pair:
            turn = np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]])
            covariances.append(turn @ np.diag([w**2, h**2]) @ turn.T)
        p, q, d = *covariances, pair[0][:2] - pair[1][:2]
        middle, det = (p + q) / 24, np.linalg.det
        b1, b2 = d @ np.linalg.inv(middle) @ d / 8, np.log(det(middle) / np.sqrt(det(p / 12) * det(q / 12))) / 2
        assert values[0][k] == pytest.approx(np.sqrt(1 - np.exp(-b1 - b2)), abs=1e-12)
        v, vp, vq = (np.sqrt(det(s)) for s in (p - p @ np.linalg.inv(p + q) @ p, p, q))
        assert values[1][k] == pytest.approx(1 - v / (vp + vq - v), abs=1e-12)


@every_loss
def test_turning_moving_and_scaling_both_changes_nothing(name):
    a, b = drawn(20, 1), drawn(20, 2)
    value, turn = rotated.LOSSES[name](a, b), 0.7
    rotation = tensor([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]], dtype=torch.float64)
    moved = [torch.cat((3 * (box[:, :2] @ rotation) + 50, 3 * box[:, 2:4], box[:, 4:] + turn), 1) for box in (a, b)]
    torch.testing.assert_close(rotated.LOSSES[name](*moved), value, rtol=1e-9, atol=1e-9)
    assert rotated.LOSSES[name](a[:, None].float(), b.float()).shape == (20, 20)


@every_loss
def test_the_gradient_is_the_derivative_and_finite_for_awkward_boxes(name):
    a, b = drawn(10, 3).requires_grad_(), drawn(10, 4)
    assert torch.autograd.gradcheck(rotated.LOSSES[name], (a, b))
    values = tensor([0.0, 1, 2, 1e-6, 1e6])
    generator = torch.Generator().manual_seed(0)
    a, b = values[torch.randint(5, (2, 2000, 5), generator=generator)]
    for target in (b, a):
        moving = a.clone().requires_grad_()
        value = rotated.LOSSES[name](moving, target)
        assert value.isfinite().all() and torch.autograd.grad(value.sum(), moving)[0].isfinite().all()


def test_boxes_without_an_angle_are_refused():
    with pytest.raises(ValueError, match=r"need shape \(..., 5\)"):
        rotated.giou(torch.zeros(3, 4), torch.zeros(3, 5))


def test_the_table_of_the_docs():
    turned, rows = SQUARE + tensor([0, 0, 0, 0, 0.3]), []
    for name in rotated.LOSSES:
        away = [slope(name, SQUARE + tensor([d, 0, 0, 0, 0]), SQUARE, 0) for d in (0.5, 2, 3, 5)]
        numbers = [rotated.LOSSES[name](WIDE, WIDE).item(), slope(name, turned, SQUARE, 4), *away]
        rows.append(f"| `{name}` | " + " | ".join(f"{0 if abs(x) < 1e-9 else x:.2g}" for x in numbers) + " |\n")
    assert "".join(rows) in (project_folder() / "docs" / "losses.md").read_text(), "".join(rows)
