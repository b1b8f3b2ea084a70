"""giou_repro: which box-regression loss to use, measured.

from giou_repro import LOSSES, loss, simulate, boxes
"""

import importlib

__version__ = "0.1.0"
__all__ = ["LOSSES", "boxes", "loss", "simulate"]

_HOMES = {"LOSSES": "registry", "loss": "registry", "simulate": "simulation"}


def __getattr__(name):
    """Import torch only when something that needs it is asked for: the command line answers --help without."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"giou_repro.{_HOMES[name]}"), name)
    if name == "boxes":
        return importlib.import_module("giou_repro.boxes")
    raise AttributeError(f"module 'giou_repro' has no attribute {name!r}")
