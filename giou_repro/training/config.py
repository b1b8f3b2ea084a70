"""What decides a training run: the parameters, their defaults and what a scale sets. Importing it brings pydantic
alone, so that tables of runs are read without a detector."""

from typing import Literal

import pydantic

from giou_repro.runs.parameters import ImageSize, Seed, Share

SCALES = {  # what a scale sets where the caller says nothing
    "smoke": {"images": 32, "val_images": 16, "image_size": 64, "epochs": 2, "batch_size": 8},
    "laptop": {"images": 500, "val_images": 100, "image_size": 128, "epochs": 5, "batch_size": 8},
    "paper": {"images": 5000, "val_images": 1000, "image_size": 416, "epochs": 100, "batch_size": 64},
}
LEARNING_RATES = {"adamw": 2e-3, "sgd": 1e-2}  # where none is given


class Config(pydantic.BaseModel, extra="forbid", frozen=True):
    """What decides a training run. Every field has a default; `configure` sets those a scale decides."""

    detector: str = "yolov3"
    dataset: str = "shapes"
    loss: str = "giou"
    weight: pydantic.PositiveFloat | None = None
    seed: Seed = 0
    scale: Literal["smoke", "laptop", "paper"] = "laptop"
    train_split: str = "train"
    val_split: str = "val"
    backbone: str | None = None
    images: pydantic.PositiveInt | None = None
    val_images: pydantic.PositiveInt | None = None
    image_size: ImageSize = 128
    epochs: pydantic.PositiveInt = 5
    batch_size: pydantic.PositiveInt = 16
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: pydantic.PositiveFloat | None = None
    schedule: Literal["cosine", "step"] = "cosine"
    warmup: Share = 0.05
    ema: Share = 0.998
    clip: pydantic.PositiveFloat = 10.0
    augment: bool = True
    frozen_views: pydantic.NonNegativeInt = 0
    evaluations: pydantic.NonNegativeInt = 4
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = False
    device: str = "auto"


def configure(**given) -> Config:
    """The Config of the values given, the scale's for the rest; None means "not given". Raises ValueError naming the
    field."""
    from giou_repro import detectors, devices  # here, because they bring torch
    from giou_repro.registry import select

    given = {name: value for name, value in given.items() if value is not None}
    scale = given.get("scale", Config.model_fields["scale"].default)
    budget = SCALES.get(scale, {})
    if given.get("dataset", "shapes") != "shapes" and scale != "smoke":  # of files all images, but for a smoke run
        budget = budget | {"images": None, "val_images": None}
    config = Config(**(budget | given))
    detectors.check(config.detector, config.backbone)
    if config.frozen_views and not (config.detector == "yolov3" and detectors.pretrained(config.backbone)):
        raise ValueError(
            "frozen_views needs detector yolov3 and a backbone with weights, as efficientnet_lite0; or leave it 0"
        )
    devices.resolve(config.device)
    select([config.loss])
    rate = config.learning_rate or LEARNING_RATES[config.optimizer]
    return config.model_copy(update={"learning_rate": rate})
