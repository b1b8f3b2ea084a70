"""The simulation of the DIoU paper: boxes moved to their targets by gradient steps on a loss, without a network.

`simulate` (descent) runs it for any registered loss: from the start boxes of `cases` by the gradient steps of `step`,
which `compiled` compiles. `diou_code` has the gradients of the authors' code, which are not those of their losses.
"""

from giou_repro.simulation.cases import CASES_PER_POINT, CENTRE, SHAPES, case_number
from giou_repro.simulation.descent import COMPILE_FROM, Simulation, simulate

__all__ = ["CASES_PER_POINT", "CENTRE", "COMPILE_FROM", "SHAPES", "Simulation", "case_number", "simulate"]
