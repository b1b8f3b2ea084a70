"""What decides a training run: the parameters that notebook 05 declares, and what a scale sets.

The notebook's parameters cell is the one place of their names, types, defaults and help: `Config`, the flags of
`giou-repro train` and `giou-repro run --parameters` are made of it. Importing this brings pydantic alone, so that
tables of runs are read without a detector; loop.configure checks more.
"""

import pydantic

from giou_repro.runs import parameters

SCALES = {  # what a scale sets where the caller says nothing
    "smoke": {"images": 32, "val_images": 16, "image_size": 64, "epochs": 2, "batch_size": 8},
    "laptop": {"images": 400, "val_images": 100, "image_size": 96, "epochs": 5, "batch_size": 8},
    "paper": {"images": 5000, "val_images": 1000, "image_size": 416, "epochs": 100, "batch_size": 64},
}
LEARNING_RATES = {"adamw": 2e-3, "sgd": 1e-2}  # where none is given
DECLARED = parameters.declared(parameters.find_notebook("05_train_detector"))  # name → parameters.Parameter

Config = pydantic.create_model(
    "Config",
    __config__=pydantic.ConfigDict(extra="forbid", frozen=True),
    __doc__="What decides a training run: the parameters of notebook 05, but for `run_dir`; loop.configure makes it.",
    **{name: (parameter.type, parameter.default) for name, parameter in DECLARED.items() if name != "run_dir"},
)
