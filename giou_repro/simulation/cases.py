"""The cases of the DIoU paper's simulation: anchor points, start boxes and targets (Zheng et al., AAAI 2020)."""

import numpy as np
import torch

from giou_repro import boxes

CENTRE = (10.0, 10.0)  # of all targets
RADIUS = 3.0  # of the disc of anchor points around it
SHAPES = (  # width and height of the seven boxes of area 1
    (0.5, 2.0),
    (3**0.5 / 3, 3**0.5),
    (2**0.5 / 2, 2**0.5),
    (1.0, 1.0),
    (2**0.5, 2**0.5 / 2),
    (3**0.5, 3**0.5 / 3),
    (2.0, 0.5),
)
AREAS = (0.5, 0.67, 0.75, 1.0, 1.33, 1.5, 2.0)  # of the start box over the target's
CASES_PER_POINT = len(SHAPES) * len(AREAS) * len(SHAPES)


def case_number(point: int, target: int, area: int, shape: int) -> int:
    """The number, from 1, of the case at anchor `point` with the target, area and anchor shape numbered from 1 to 7."""
    return (((point - 1) * 7 + target - 1) * 7 + area - 1) * 7 + shape


def draw_points(n_points: int, seed: int) -> np.ndarray:
    """(n, 2) anchor points uniform in the disc."""
    u1, u2 = np.random.default_rng(seed).random((2, n_points))
    radius, angle = RADIUS * np.sqrt(u1), 2 * np.pi * u2
    return np.stack((CENTRE[0] + radius * np.cos(angle), CENTRE[1] + radius * np.sin(angle)), 1)


def checked_points(points) -> np.ndarray:
    """`points` as a float64 array (n, 2); ValueError where they are none."""
    try:
        points = np.asarray(points, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"points must be an (n, 2) array of x and y, got {points!r}") from None
    if points.ndim != 2 or points.shape[1] != 2 or len(points) == 0 or not np.isfinite(points).all():
        raise ValueError(
            f"points must be a finite (n, 2) array of x and y with n of at least 1, got shape {points.shape}"
        )
    return points


def checked_case_numbers(trajectories, n_points: int) -> np.ndarray:
    """The numbers in `trajectories`, sorted, each once; ValueError for one that is no case of `n_points` points."""
    numbers, last = np.asarray(trajectories), n_points * CASES_PER_POINT
    if not len(trajectories):
        return numbers.astype(np.int64)
    if numbers.dtype.kind not in "iu" or numbers.ndim != 1 or ((numbers < 1) | (numbers > last)).any():
        raise ValueError(f"trajectories must be a list of case numbers from 1 to {last}, got {trajectories!r}")
    return np.unique(numbers)


def boxes_and_targets(points: np.ndarray, encoding: str, dtype: torch.dtype, device: torch.device):
    """Start boxes and targets of the cases at `points` (n, 2), each as four columns (n, 343) in `encoding`.

    Order of a row: target, area, anchor shape. The arithmetic is NumPy's, whose square root is correctly rounded: some
    cases amplify the last bit of their start into a visible difference.
    """
    shapes = np.array(SHAPES)
    target_w, target_h = shapes[:, 0, None, None], shapes[:, 1, None, None]
    scale = np.sqrt(np.array(AREAS)[None, :, None] * target_w * target_h)
    grid = (len(points), len(SHAPES), len(AREAS), len(SHAPES))
    start = (points[:, 0, None, None, None], points[:, 1, None, None, None], shapes[:, 0] * scale, shapes[:, 1] * scale)
    target = (*map(np.array, CENTRE), target_w, target_h)
    for columns in (start, target):
        rows = (torch.from_numpy(np.broadcast_to(column, grid).flatten()).view(len(points), -1) for column in columns)
        yield tuple(column.to(device, dtype) for column in boxes.convert(tuple(rows), "cxcywh", encoding))
