"""giou_repro: which box-regression loss to use, measured.

from giou_repro import LOSSES, loss, simulate, boxes, explore
"""

import importlib

__version__ = "0.1.0"
__all__ = ["LOSSES", "boxes", "explore", "loss", "simulate"]

# where the public names are defined
MODULES = {"LOSSES": "registry", "loss": "registry", "simulate": "simulation", "explore": "explorer"}


def __getattr__(name):
    """Import torch only where a name needs it: the command line answers --help without."""
    if name not in __all__:
        raise AttributeError(f"module 'giou_repro' has no attribute {name!r}")
    module = importlib.import_module(f".{MODULES.get(name, name)}", __name__)
    return getattr(module, name, module)
