"""The simulation of the DIoU paper: boxes moved to their targets by gradient steps on a loss, without a network.

`simulate` runs it for any registered loss. `compiled` compiles its step; `diou_code` has the gradients of the authors'
code, which are not those of their losses.
"""

from giou_repro.simulation.descent import (
    CASES_PER_POINT,
    CENTRE,
    COMPILE_FROM,
    SHAPES,
    Simulation,
    case_number,
    simulate,
)

__all__ = ["CASES_PER_POINT", "CENTRE", "COMPILE_FROM", "SHAPES", "Simulation", "case_number", "simulate"]
