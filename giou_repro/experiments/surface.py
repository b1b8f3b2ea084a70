"""Notebook 03's final errors in the form that the explorer draws: small enough to lie in a page."""

import base64

import numpy as np
import pandas as pd

from giou_repro.simulation import CASES_PER_POINT, CENTRE

RADIUS = 3  # of the disc of anchor points


def surface(finals: dict[str, pd.DataFrame], size: float, step_sizes: dict[str, pd.DataFrame]) -> dict:
    """From Simulation.final at step size `size`, by "exact" and "published", and `convergence.step_sizes` by encoding.

    cells: by gradients and loss, side × side bytes of the square around the disc, row by row from the least y: 0 where
    no anchor point lies, else 1 to 255 for a mean final error of a case from `low` to `high`, by its logarithm. ends:
    by encoding, for each of `sizes`, which all losses have, the final error of each loss; published: that at `size`.
    """
    side = int(np.clip(np.sqrt(finals["exact"].point.nunique()) / 2, 3, 40))
    grids = {way: {n: _grid(part, side) for n, part in final.groupby("loss")} for way, final in finals.items()}
    errors = np.concatenate([grid for of_loss in grids.values() for grid in of_loss.values()])
    low, high = max(np.nanmin(errors), 1e-4), np.nanmax(errors)
    cells = {way: {n: _bytes(grid, low, high) for n, grid in of_loss.items()} for way, of_loss in grids.items()}
    counts = pd.concat(step_sizes.values()).step_size.value_counts()
    sizes = sorted(counts[counts == counts.max()].index)
    ends = {encoding: [_ends(sweep[sweep.step_size == at]) for at in sizes] for encoding, sweep in step_sizes.items()}
    published = finals["published"].groupby("loss").error.mean() / CASES_PER_POINT
    published = _ends(published.reset_index())
    return dict(cells=cells, ends=ends, published=published, sizes=sizes, size=size, side=side, low=low, high=high)


def _ends(standings):
    finite = standings.dropna(subset="error")
    return dict(zip(finite.loss, finite.error.round(7), strict=True))


def _grid(final, side):
    """The mean final error of a case, (side, side), y first; NaN where there is no anchor point, or none that ended."""
    final = final[np.isfinite(final.error)]
    edges = [np.linspace(centre - RADIUS, centre + RADIUS, side + 1) for centre in CENTRE]
    total, _, _ = np.histogram2d(final.y, final.x, edges[::-1], weights=final.error / CASES_PER_POINT)
    count, _, _ = np.histogram2d(final.y, final.x, edges[::-1])
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _bytes(grid, low, high):
    share = np.log(np.clip(grid, low, high) / low) / np.log(high / low)
    return base64.b64encode((1 + np.rint(254 * np.nan_to_num(share, nan=-1 / 254))).astype("u1").tobytes()).decode()
