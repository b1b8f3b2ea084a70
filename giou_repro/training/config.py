"""What decides a training run: the parameters, their defaults and what a scale sets. Importing it brings pydantic
alone, so that tables of runs are read without a detector; loop.configure checks them."""

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
