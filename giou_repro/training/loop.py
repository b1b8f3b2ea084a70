"""One seeded training run of a detector: a configuration and a run folder in, tables out.

Killed at any moment, it goes on from the last epoch's checkpoint and, on a CPU, ends with the same numbers as an
unbroken run: every random draw of an epoch comes from (seed, epoch). Under `torchrun` the same call trains on several
devices; rank 0 alone writes.
"""

import math
import statistics
import sys
import time
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from torch import distributed
from tqdm.auto import tqdm

try:
    from safetensors.torch import save as safetensors_bytes

    from giou_repro import detectors, devices
    from giou_repro.data import datasets
    from giou_repro.data.defects import summary
    from giou_repro.data.files import compare, in_both
    from giou_repro.runs import store
    from giou_repro.training import average_precision, batches, ranks
    from giou_repro.training import detections as detections_file
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"training needs {error.name}: pip install 'giou-repro[detection]'") from None
from giou_repro.registry import select
from giou_repro.training.checkpoint import Training, cut_log
from giou_repro.training.config import LEARNING_RATES, SCALES, Config

OUTPUTS = (  # without which a run is not complete
    *("evaluation.csv", "thresholds.csv", "classes.csv", "curves.csv", "detections.npz", "model.safetensors"),
    *("figures/curves.png", "figures/detections.png", "figures/thresholds.png"),
)
STEPS_READ = 20  # steps whose numbers are read from the device at once, so that it is not kept waiting
OF_YOLOV3 = ("cells_away", "darknet_chain")  # parameters of this detector alone
SCORES = ("AP", "AP50", "AP75")  # what is measured during training


@dataclass
class Trained:
    """What a run gives: tables for the run folder, the model with averaged weights, and detections to look at."""

    loss: str  # its name in LOSSES
    evaluation: pd.DataFrame
    thresholds: pd.DataFrame
    classes: pd.DataFrame
    curves: pd.DataFrame
    model: torch.nn.Module
    val: batches.Packed
    detections: list  # of every validation square, in its own pixels
    names: tuple

    def save(self, run) -> None:
        """Write the tables into the run's folder."""
        for name in ("evaluation", "thresholds", "classes", "curves"):
            run.save_table(name, getattr(self, name))


class TrainingError(RuntimeError):
    """A loss or gradient was not finite; names the step, the parts and the images."""


def configure(**given) -> Config:
    """The Config of the values given, the scale's for the rest; None means "not given". Raises ValueError naming the
    field."""
    given = {name: value for name, value in given.items() if value is not None}
    scale = given.get("scale", Config.model_fields["scale"].default)
    budget = SCALES.get(scale, {})
    if given.get("dataset", "shapes") != "shapes" and scale != "smoke":  # of files all images, but for a smoke run
        budget = budget | {"images": None, "val_images": None}
    config = Config(**(budget | given))
    detectors.check(config.detector, config.backbone)
    for name in OF_YOLOV3:
        if getattr(config, name) and config.detector != "yolov3":
            raise ValueError(f"{name} is of yolov3, not of {config.detector}; leave it out")
    if config.frozen_views and not (config.detector == "yolov3" and detectors.pretrained(config.backbone)):
        raise ValueError(
            "frozen_views needs detector yolov3 and a backbone with weights, as efficientnet_lite0; or leave it 0"
        )
    devices.resolve(config.device)
    select([config.loss])
    rate = config.learning_rate or LEARNING_RATES[config.optimizer]
    return config.model_copy(update={"learning_rate": rate})


def open_sets(config: Config):
    """(training set, validation set), opened but not read. Raises OSError or ValueError for what cannot be trained
    on."""
    datasets.check_splits(config.dataset, config.train_split, config.val_split)
    options = {"seed": config.seed, "image_size": config.image_size}
    options |= {"exif": config.exif, "background": config.background}
    train_set = datasets.load(config.dataset, config.train_split, images=config.images, **options)
    if config.detector == "mask_rcnn" and not train_set.has_masks:
        remedy = "take faster_rcnn, or a COCO JSON with segmentations"
        raise ValueError(f"mask_rcnn needs masks, and {config.dataset} has boxes only; {remedy}")
    options |= {"images": config.val_images, "classes": train_set.classes}
    val_set = datasets.load(config.dataset, config.val_split, **options)
    if config.dataset != "shapes":
        val_set.defects += compare({config.train_split: train_set.pictures, config.val_split: val_set.pictures})
    return train_set, val_set


def train(config: Config, run: store.Run | None, sets=None) -> Trained | None:
    """Train and evaluate one detector into `run`'s folder; on ranks other than 0 `run` and what is returned are None.

    `sets` are those of `open_sets`, where they are open already.
    Raises TrainingError where a loss or gradient is not finite (the last checkpoint stays), ValueError for a set or
    setting that cannot be trained.
    """
    rank, world = ranks.join()
    if rank == 0:
        run.check()
    device = ranks.device(config.device)
    torch.manual_seed(config.seed)
    train_set, val_set = sets or open_sets(config)
    packed, val = _pack(config, train_set, val_set, device)
    options = {name: getattr(config, name) for name in OF_YOLOV3 if config.detector == "yolov3"}
    what = (config.detector, len(train_set.classes), config.loss, config.weight, config.image_size, config.backbone)
    model = detectors.build(*what, **options)
    source = _source(config, model, packed, device, rank)
    training = Training(model.to(device, memory_format=torch.channels_last), config)
    training.resume(ranks.broadcast(run and run.folder, world), device)
    if rank == 0:
        _record_data(run, config, (train_set, packed), (val_set, val))
        cut_log(run, training.history[-1]["step"] if training.history else 0)
        if training.epoch:
            run.update(resumed_after_epoch=training.epoch)
            print(f"resumed in {run.folder}, after epoch {training.epoch} of {config.epochs}", flush=True)
    forward = ranks.forward_of(model, config, world, device)
    spread = (round(config.epochs * (i + 1) / (config.evaluations + 1)) for i in range(config.evaluations))
    measured = {*spread} - {0, config.epochs}  # epochs after which AP is measured; the end has its own
    bar = {"initial": training.epoch, "total": config.epochs, "desc": "epochs", "disable": True if rank else None}
    for epoch in tqdm(range(training.epoch, config.epochs), **bar):
        for rows in _epoch(epoch, forward, training, packed, source, rank, world):
            training.history += rows
            for row in rows if rank == 0 else ():
                run.log(**row)
        training.epoch = epoch + 1
        if rank == 0:
            losses = [row["loss"] for row in training.history if row["epoch"] == training.epoch]
            words = f"epoch {training.epoch} of {config.epochs}: loss {statistics.fmean(losses):.4g}"
            if training.epoch in measured:
                found = _in_images(val, detect(training.average.module, val, config, device))
                row = average_precision.evaluate(*found, val_set.classes).summary
                training.scores.append({"epoch": training.epoch} | {name: row[name] for name in SCORES})
                words += f", AP {row['AP']:.3f}"
            training.save(run)
            if not sys.stderr.isatty():  # without a progress bar
                print(words, flush=True)
        if world > 1:
            distributed.barrier()
    return _finish(training, run, val, val_set, device) if rank == 0 else None


# ---- one epoch


def _epoch(epoch, forward, training, packed, source, rank, world):
    """Train one epoch; gives lists of rows, a row a step."""
    config = training.config
    training.model.train()
    torch.manual_seed(batches.mixed_seed(config.seed, epoch, rank))  # the proposal samplers draw from the global one
    batch, order = source(epoch), batches.order(len(packed), config.batch_size, config.seed, epoch)
    numbered = list(enumerate(order, start=epoch * len(order)))
    for first in range(0, len(numbered), STEPS_READ):
        steps = numbered[first : first + STEPS_READ]
        start, results = time.perf_counter(), []
        for step, indices in steps:
            own = indices[rank::world]
            images, targets = batch(own if len(own) else indices[:1])  # one not counted, where a rank has none
            counting = partial(forward, counted=len(own) > 0)
            results.append(training.step(counting, images, targets, step / (len(order) * config.epochs)))
        rows = _read(steps, results, packed, world)
        speed = sum(len(indices) for _, indices in steps) / (time.perf_counter() - start)
        yield [{"epoch": epoch + 1} | row | {"images_per_second": round(speed, 1)} for row in rows]


def _read(steps, results, packed, world):
    """A row for each of several steps, moved to the CPU at once; stop at the first that is not finite.

    Losses are means over ranks, positives sums.
    """
    names = list(results[0][0])
    columns = [*names, *ranks.POSITIVES, "gradient"]
    values = torch.stack([torch.stack([*losses.values(), *seen.values(), norm]) for losses, seen, norm in results])
    if world > 1:
        values[:, [name not in ranks.POSITIVES for name in columns]] /= world
        distributed.all_reduce(values)
    rows = []
    for (step, indices), line in zip(steps, values.tolist(), strict=True):
        row = dict(zip(columns, line, strict=True))
        if not all(map(math.isfinite, line)):
            ids = [packed.truths[i].get("image_id", i) for i in indices.tolist()]
            remedy = "the last checkpoint is kept. Lower learning_rate or weight"
            raise TrainingError(f"step {step}: {row} is not finite for images {ids}; {remedy}")
        losses, count = {name: row[name] for name in names}, max(row["count"], 1)
        rows.append(
            {
                "step": step + 1,
                "loss": sum(losses.values()),
                **losses,
                "positives": row["count"],
                "iou_sum": row["iou"],
                "disjoint_count": row["disjoint"],
                "mean_iou": row["iou"] / count,
                "disjoint": row["disjoint"] / count,
                "gradient": row["gradient"],
            }
        )
    return rows


# ---- the end of a training


def _finish(training, run, val, val_set, device):
    config, model = training.config, training.average.module
    detections = detect(model, val, config, device)
    found = _in_images(val, detections)
    run.save_arrays("detections", **detections_file.arrays(*found, val_set.classes))
    summary, thresholds, classes = average_precision.evaluate(*found, val_set.classes)
    steps = pd.DataFrame(training.history)
    steps["clipped"] = steps.gradient > config.clip
    measured = {
        "dataset": val_set.name,
        "detector": config.detector,
        "loss": config.loss,
        "weight": model.box_loss.weight,
        "seed": config.seed,
        **summary,
        "disjoint": steps.disjoint_count.sum() / max(steps.positives.sum(), 1),
        **(_positives(model, val, config, device) if config.detector == "yolov3" else {}),
        "clipped": steps.clipped.mean(),
        "images_per_second": steps.images_per_second.median(),
    }
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    run.save("model.safetensors", safetensors_bytes(weights))
    last = {"epoch": config.epochs} | {name: summary[name] for name in SCORES}
    curves = _curves(steps, pd.DataFrame([*training.scores, last]))
    tables = pd.DataFrame([measured]), thresholds, classes, curves
    return Trained(select([config.loss])[0], *tables, model, val, detections, val_set.classes)


def _curves(steps, scores):
    """One row an epoch: means over its steps, `clipped` the share whose gradient was, and the AP where measured."""
    epochs = steps.groupby("epoch")
    table = epochs[list(steps.columns[2 : steps.columns.get_loc("positives")])].mean()  # loss and its parts
    table.insert(0, "step", epochs.step.max())
    count = epochs.positives.sum().clip(lower=1)
    table["clipped"] = epochs.clipped.mean()
    table["mean_iou"], table["disjoint"] = epochs.iou_sum.sum() / count, epochs.disjoint_count.sum() / count
    return table.reset_index().merge(scores, on="epoch", how="left")


def detect(model, packed, config, device):
    """Boxes, scores and labels found in every square of `packed`, on the CPU, in pixels of the squares.

    In float32 whatever the training's precision: bfloat16 has few distinct scores, and another AP.
    """
    model.eval()
    with torch.inference_mode():
        parts = (batches.batch(packed, part, device)[0] for part in torch.arange(len(packed)).split(config.batch_size))
        found = (of_image for images in parts for of_image in model(images))
        return [{key: of_image[key].cpu() for key in ("boxes", "scores", "labels")} for of_image in found]


def _positives(model, val, config, device):
    """Mean IoU and share disjoint of the positives of the validation images: what the box loss would see of them."""
    model.eval()
    with torch.inference_mode():
        parts = (batches.batch(val, part, device) for part in torch.arange(len(val)).split(config.batch_size))
        count, overlap, disjoint = torch.stack([torch.stack([*model(*part)[1].values()]) for part in parts]).sum(0)
    shares = {"val_positives_iou": overlap / count, "val_positives_disjoint": disjoint / count}
    return {name: share.item() for name, share in shares.items()}


def _in_images(val, detections):
    """Truths and detections in the pixels of the images as they are."""
    return tuple([val.original(one, index) for index, one in enumerate(of)] for of in (val.truths, detections))


# ---- data


def _pack(config, train_set, val_set, device):
    """The squares of the training set and of the validation set."""
    cache, size = batches.cache_folder(), config.image_size
    packed = batches.pack(train_set, size, config.detector == "mask_rcnn", config.images, cache, device)
    if not sum(len(batches.training_truth(truth)["labels"]) for truth in packed.truths):
        problem = f"{config.dataset} {config.train_split}: no object to train on is left"
        raise ValueError(f"{problem}; run `giou-repro data check {config.dataset}`")
    return packed, batches.pack(val_set, size, False, config.val_images, cache, device)


def _source(config, model, packed, device, rank):
    """Where batches come from: the squares, or with a frozen backbone its features of them."""
    if not config.frozen_views:
        return batches.augmented_batches(packed, device, config.augment, config.seed, rank)
    model.backbone.requires_grad_(False)

    def features(images):
        model.backbone.eval()
        with torch.no_grad(), ranks.autocast(config.precision, device):
            return model.backbone(images)

    return batches.FrozenFeatures(packed, device, config.augment, config.seed, config.frozen_views, features)


def _in_both(config, train_set, val_set):
    """How many validation images are training images too."""
    if config.dataset == "shapes":
        return min(len(train_set), len(val_set)) if config.train_split == config.val_split else 0
    return in_both(train_set.pictures[: config.images], val_set.pictures[: config.val_images])


def _record_data(run, config, training, validation):
    """Record what was read, what was left out and how many images are in both sets; print what was left out, and
    warn."""
    record = {}
    for dataset, packed in (training, validation):
        record[dataset.split] = {
            "name": dataset.name,
            "checksum": dataset.checksum,
            "images": len(packed),
            "defects": len(dataset.defects),
            "recipe": getattr(dataset, "recipe", dataset.checksum),
            "unreadable": packed.skipped,
        }
        if dataset.defects or packed.skipped:
            print(f"{dataset.name} {dataset.split}: {summary(dataset.defects)}", *packed.skipped, sep="\n  ")
    (train_set, _), (val_set, packed) = training, validation
    in_both = record[val_set.split]["also_trained_on"] = _in_both(config, train_set, val_set)
    run.update(data=record)
    if in_both:
        split = train_set.split.partition("[")[0]
        print(
            f"WARNING: {in_both} of {len(packed)} images of {val_set.split} are images of {train_set.split} too.",
            "WARNING: AP is of images that were trained on.",
            f'WARNING: For new ones divide a split: train_split "{split}[:80%]", val_split "{split}[80%:]".',
            sep="\n",
            file=sys.stderr,
        )
