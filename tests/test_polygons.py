"""Boxes in n dimensions and convex polygons, by hand, against boxes in the plane, and against SciPy's half-planes and
hulls."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial import ConvexHull, HalfspaceIntersection
from torch import tensor

from giou_repro import boxes, polygons
from giou_repro.registry import LOSSES

SQUARE = tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]], dtype=torch.float64)


def corners(box):
    """Axis-aligned xyxy boxes (..., 4) as polygons (..., 4, 2)."""
    x1, y1, x2, y2 = box.unbind(-1)
    return torch.stack([torch.stack(pair, -1) for pair in ((x1, y1), (x2, y1), (x2, y2), (x1, y2))], -2)


def convex(generator, batch, k):
    """Random convex polygons: points in order on random ellipses."""
    angle = (torch.rand(batch, k, generator=generator, dtype=torch.float64) * 2 * math.pi).sort(-1).values
    centre, size = (torch.rand(batch, 1, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    return 2 * centre + (0.3 + size) * torch.stack((angle.cos(), angle.sin()), -1)


def test_in_the_plane_it_is_boxes_giou(random_boxes):
    a, b = random_boxes(500, seed=1), random_boxes(500, seed=2)
    torch.testing.assert_close(polygons.box_iou(a, b), boxes.iou(a, b), atol=1e-14, rtol=0)
    torch.testing.assert_close(polygons.box_giou(a, b), boxes.giou(a, b), atol=1e-14, rtol=0)


def test_cubes():
    cube = tensor([0.0, 0, 0, 1, 1, 1])
    half = tensor([0.5, 0.5, 0.5, 1.5, 1.5, 1.5])  # an eighth in common; the hull is 27/8
    assert polygons.box_iou(cube, half).item() == pytest.approx(1 / 15)
    assert polygons.box_giou(cube, half).item() == pytest.approx(1 / 15 - (27 / 8 - 15 / 8) / (27 / 8))
    assert polygons.box_giou(cube, cube) == 1
    assert polygons.box_giou(tensor([0.0, 1.0]), tensor([3.0, 4.0])).item() == pytest.approx(
        -0.5
    )  # intervals: half of the hull is empty


def test_a_square_and_a_diamond():
    diamond = tensor([[0.5, 0.0], [1, 0.5], [0.5, 1], [0, 0.5]], dtype=torch.float64)
    assert polygons.intersection_area(SQUARE, diamond).item() == pytest.approx(0.5)
    assert polygons.polygon_iou(SQUARE, diamond).item() == pytest.approx(0.5)
    assert polygons.polygon_giou(SQUARE, diamond).item() == pytest.approx(0.5)  # contained: nothing between


def test_mgiou_by_hand_and_of_boxes(random_boxes):
    aside = SQUARE + tensor([0.5, 0])  # along x 1/2 of 3/2 in common, along y all: 2/3
    assert polygons.polygon_mgiou(SQUARE, aside).item() == pytest.approx(2 / 3)
    assert polygons.polygon_mgiou(SQUARE, SQUARE + tensor([2, 0])).item() == pytest.approx(1 / 3)  # a gap of 1 in 3
    diamond = tensor([[0.5, 0.0], [1, 0.5], [0.5, 1], [0, 0.5]], dtype=torch.float64)
    assert polygons.polygon_mgiou(SQUARE, diamond).item() == pytest.approx(
        3 / 4
    )  # 1 on its sides, 1/2 on the diagonals
    a, b = random_boxes(100, seed=1), random_boxes(100, seed=2)
    loss = (1 - polygons.polygon_mgiou(corners(a), corners(b).flip(-2))) / 2
    torch.testing.assert_close(loss, LOSSES["mgiou"](a, b), atol=1e-14, rtol=0)


def test_mgiou_of_polygons_against_projections_on_each_normal():
    generator = torch.Generator().manual_seed(0)
    a, b = convex(generator, 20, 5), convex(generator, 20, 3)
    for p, q, value in zip(a.numpy(), b.numpy(), polygons.polygon_mgiou(a, b), strict=True):
        gious = []
        for x, y in np.concatenate([np.roll(polygon, -1, 0) - polygon for polygon in (p, q)]):
            (low, high), (start, end) = (((polygon @ [y, -x]).min(), (polygon @ [y, -x]).max()) for polygon in (p, q))
            hull, common = max(high, end) - min(low, start), max(0, min(high, end) - max(low, start))
            union = high - low + end - start - common
            gious.append(common / union - (hull - union) / hull)
        assert value.item() == pytest.approx(np.mean(gious), abs=1e-14)


def test_mgiou_of_polygons_is_defined_where_edges_have_no_length():
    triangle, point = SQUARE[[0, 1, 2, 2]], SQUARE[[0, 0, 0]]
    torch.testing.assert_close(polygons.polygon_mgiou(SQUARE, triangle), polygons.polygon_mgiou(SQUARE, SQUARE[:3]))
    assert polygons.polygon_mgiou(point, point) == 1 and polygons.polygon_mgiou(point, point + 1) == -1
    moving = (point + 0.5).requires_grad_()  # a point in the square's middle is pulled to its sides
    assert torch.autograd.grad(polygons.polygon_mgiou(moving, SQUARE), moving)[0].isfinite().all()


def test_the_hull_of_diagonal_neighbours_is_smaller_than_their_box():
    other = SQUARE + 1  # touching at a corner: hull 3 (a hexagon), enclosing box 4
    assert polygons.hull_area(torch.cat((SQUARE, other))).item() == pytest.approx(3)
    assert polygons.polygon_giou(SQUARE, other).item() == pytest.approx(-1 / 3)
    assert boxes.giou(tensor([0.0, 0, 1, 1]), tensor([1.0, 1, 2, 2])).item() == pytest.approx(-1 / 2)


@pytest.mark.parametrize("turned", [SQUARE, SQUARE.flip(0), SQUARE.roll(2, 0)])
def test_equal_polygons_in_any_order(turned):
    assert polygons.polygon_giou(SQUARE, turned).item() == pytest.approx(1)


def test_rotating_both_changes_nothing():
    a, b = tensor([0.0, 0, 2, 1, 0.3]).double(), tensor([0.5, 0.2, 1, 3, 1.1]).double()
    turn = tensor([0, 0, 0, 0, 0.7]).double()
    centre = polygons.rotated(torch.cat((b[:2], b[2:])))
    rotation = tensor([[math.cos(0.7), math.sin(0.7)], [-math.sin(0.7), math.cos(0.7)]], dtype=torch.float64)
    before = polygons.polygon_giou(polygons.rotated(a), centre)
    after = polygons.polygon_giou(polygons.rotated(a + turn), centre @ rotation)
    torch.testing.assert_close(before, after)


def test_axis_aligned_polygons_intersect_like_boxes(random_boxes):
    a, b = random_boxes(300, seed=1), random_boxes(300, seed=2)
    torch.testing.assert_close(polygons.polygon_iou(corners(a), corners(b)), boxes.iou(a, b), atol=1e-12, rtol=0)
    assert (
        polygons.polygon_giou(corners(a), corners(b)) >= boxes.giou(a, b) - 1e-12
    ).all()  # the hull is inside the enclosing box


def test_agrees_with_scipy():
    generator = torch.Generator().manual_seed(0)
    a, b = convex(generator, 60, 5), convex(generator, 60, 7)
    ours, hulls = polygons.intersection_area(a, b), polygons.hull_area(torch.cat((a, b), -2))
    for k in range(60):
        planes = np.concatenate([ConvexHull(polygon[k]).equations for polygon in (a, b)])
        assert hulls[k].item() == pytest.approx(ConvexHull(torch.cat((a, b), -2)[k]).volume, rel=1e-12)
        if ours[k] > 1e-6:
            # SciPy's intersection needs a point well inside, which linear programming finds
            inner = _inner_point(planes)
            assert ours[k].item() == pytest.approx(
                ConvexHull(HalfspaceIntersection(planes, inner).intersections).volume, rel=1e-9
            )
    assert (ours > 1e-6).sum() > 20


def _inner_point(planes):
    from scipy.optimize import linprog

    norms = np.linalg.norm(planes[:, :2], axis=1)
    found = linprog(
        [0, 0, -1],
        np.column_stack((planes[:, :2], norms)),
        -planes[:, 2],
        bounds=[(None, None), (None, None), (0, None)],
    )
    return found.x[:2]


def test_gradient_is_the_derivative():
    generator = torch.Generator().manual_seed(3)
    a, b = convex(generator, 6, 4).requires_grad_(), convex(generator, 6, 5).requires_grad_()
    assert torch.autograd.gradcheck(polygons.polygon_giou, (a, b))
    c, d = (torch.rand(6, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    cubes = torch.cat((c, c + 1), -1).requires_grad_(), torch.cat((d, d + 1), -1).requires_grad_()
    assert torch.autograd.gradcheck(polygons.box_giou, cubes)


def test_disjoint_polygons_pull_together():
    a = (SQUARE + tensor([3.0, 0.5])).requires_grad_()
    value = polygons.polygon_giou(a, SQUARE)
    assert value < 0
    (gradient,) = torch.autograd.grad(value, a)
    assert gradient[:, 0].sum() < 0  # GIoU grows as the square moves left


def test_nearly_identical_polygons_have_iou_one():
    generator = torch.Generator().manual_seed(0)
    box = torch.rand(5_000, 5, generator=generator, dtype=torch.float64) + tensor([0, 0, 0.1, 0.1, 0])
    for dtype, bound in ((torch.float64, 1e-13), (torch.float32, 1e-5)):
        polygon = polygons.rotated(box).to(dtype)
        nudge = 1 + torch.finfo(dtype).eps * torch.randint(-1, 2, polygon.shape, generator=generator)
        assert (1 - polygons.polygon_iou(polygon, polygon * nudge)).abs().max() < bound


def test_a_polygon_without_area_has_no_overlap():
    point = torch.full((3, 2), 0.5, dtype=torch.float64)
    assert polygons.polygon_iou(SQUARE, point) == 0
    assert polygons.polygon_iou(point, SQUARE) == 0


def test_size_does_not_matter():
    for scale in (1e-20, 1e200):
        assert polygons.polygon_giou(SQUARE * scale, (SQUARE + 1) * scale).item() == pytest.approx(-1 / 3)


def test_polygons_that_share_an_edge_are_pulled():
    pred = (SQUARE + tensor([1.0, 0])).requires_grad_()
    (gradient,) = torch.autograd.grad(polygons.polygon_giou(pred, SQUARE), pred)
    assert gradient[:, 0].sum() < -0.1  # GIoU grows as the square moves left


def test_pairs_and_empty_batches():
    generator = torch.Generator().manual_seed(1)
    a, b = convex(generator, 3, 4), convex(generator, 5, 6)
    matrix = polygons.polygon_giou(a[:, None], b[None])
    assert matrix.shape == (3, 5)
    torch.testing.assert_close(matrix[1, 2], polygons.polygon_giou(a[1], b[2]))
    assert polygons.polygon_giou(a[:0], b[:0]).shape == (0,)


@pytest.mark.parametrize("offset", [0.0, 1e7])
def test_degenerate_polygons_are_finite(offset):
    segment = tensor([[0.0, 0], [1, 0], [1, 0], [0, 0]], dtype=torch.float64) + offset
    point = torch.zeros(4, 2, dtype=torch.float64) + offset
    for other in (segment, point, SQUARE + offset):
        moving = segment.clone().requires_grad_()
        value = polygons.polygon_giou(moving, other)
        (gradient,) = torch.autograd.grad(value, moving)
        assert value.isfinite() and gradient.isfinite().all()


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"\(\.\.\., k, 2\)"):
        polygons.polygon_iou(torch.zeros(2, 2), SQUARE)
    with pytest.raises(ValueError, match="last dimension of 2n"):
        polygons.box_iou(torch.zeros(5), torch.zeros(5))


@pytest.mark.parametrize("measure", [polygons.box_iou, polygons.box_giou])
def test_boxes_of_two_dtypes_meet_in_the_longer(measure):
    a, b = torch.tensor([[0.0, 0, 0, 2, 2, 2]], requires_grad=True), torch.tensor([[1.0, 0, 0, 3, 2, 2]]).double()
    value = measure(a, b)
    assert (value.dtype, value.item()) == (torch.float64, pytest.approx(1 / 3))
    assert torch.equal(measure(b, a), value)
    slope = torch.autograd.grad(value.sum(), a)[0]
    expected = torch.autograd.grad(measure(a.double(), b).sum(), a)[0]
    assert slope.dtype == torch.float32 and torch.equal(slope, expected)
