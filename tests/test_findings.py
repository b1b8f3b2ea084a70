"""That the words follow the numbers."""

import numpy as np
import pandas as pd

from giou_repro.experiments import findings


def test_every_difference_is_told_with_its_verdict():
    rows = [
        ("AP", "giou", 0.008, "better"),
        ("AP50", "giou", -0.009, "worse"),
        ("AP", "ciou", 0.001, "undecided"),
        ("mean_iou", "ciou", 0.002, "undecided"),
    ]
    table = pd.DataFrame(rows, columns=["measure", "loss", "difference", "verdict"])
    table = table.assign(
        setting="cells", against="l2", n=10, low=table.difference - 0.001, high=table.difference + 0.001
    )
    words = findings.paired(table)
    assert "**cells** (4 differences)" in words
    assert (
        "- against ℓ2 (n = 10), **better**: AP: GIoU +0.008 (+0.007 to +0.009)\n- against ℓ2 (n = 10), **worse**: AP50: GIoU -0.009"
        in words
    )
    assert "**undecided**: AP: CIoU +0.001 (+0.000 to +0.002); mean IoU: CIoU +0.002 (+0.001 to +0.003)\n" in words
    few = findings.paired(table[:1].assign(n=2, low=np.nan, high=np.nan, verdict="too few seeds"))
    assert (
        "- against ℓ2 (n = 2), **too few seeds**: AP: GIoU +0.008\n- mean IoU is not compared: a training found no object"
        in few
    )
