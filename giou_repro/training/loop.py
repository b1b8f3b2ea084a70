"""One seeded training run of a detector: a configuration and a run folder in, tables out.

Killed at any moment, it goes on from the last epoch's checkpoint and, on a CPU, ends with the same numbers as an
unbroken run: every random draw of an epoch comes from (seed, epoch). Under `torchrun` the same call trains on several
devices; rank 0 alone writes.
"""

import contextlib
import copy
import io
import json
import math
import os
import sys
import time
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

try:
    from safetensors.torch import save as safetensors_bytes

    from giou_repro import detectors
    from giou_repro.data import datasets
    from giou_repro.runs import store
    from giou_repro.training import average_precision, batches
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"training needs {error.name}: pip install 'giou-repro[detection]'") from None
from giou_repro.registry import select
from giou_repro.training.config import SCALES, Config

POSITIVES = ("count", "iou", "disjoint")  # what is logged of a detector's positives
OUTPUTS = (  # without which a run is not complete
    *("evaluation.csv", "thresholds.csv", "classes.csv", "curves.csv", "model.safetensors"),
    *("figures/curves.png", "figures/detections.png", "figures/thresholds.png"),
)


def configure(**given):
    """The Config of the values given, the scale's for the rest; None means "not given". Raises ValueError naming the
    field."""
    given = {name: value for name, value in given.items() if value is not None}
    budget = SCALES.get(given.get("scale", "laptop"), {})
    if (
        given.get("dataset", "shapes") != "shapes"
    ):  # images that exist are not numbered by the scale, but for a smoke run
        budget = {
            name: value
            for name, value in budget.items()
            if name not in ("images", "val_images") or given.get("scale") == "smoke"
        }
    config = Config(**(budget | given))
    detectors.check(config.detector, config.backbone)
    if config.frozen_views and not (config.detector == "yolov3" and detectors.pretrained(config.backbone)):
        raise ValueError(
            "frozen_views needs detector yolov3 and a backbone with weights, as efficientnet_lite0; or leave it 0"
        )
    _device(config.device)
    select([config.loss])
    rate = config.learning_rate or {"adamw": 2e-3, "sgd": 1e-2}[config.optimizer]
    return config.model_copy(update={"learning_rate": rate})


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


class TrainingError(RuntimeError):
    """A loss or gradient was not finite; names the step, the parts and the images."""


def open_sets(config):
    """(training set, validation set), opened but not read. Raises OSError or ValueError for what cannot be trained
    on."""
    datasets.check_splits(config.dataset, config.train_split, config.val_split)
    sizes = {"seed": config.seed, "image_size": config.image_size}
    train_set = datasets.load(
        config.dataset, config.train_split, images=config.images or SCALES["paper"]["images"], **sizes
    )
    given = sizes | {"images": config.val_images or SCALES["paper"]["val_images"], "classes": train_set.classes}
    if config.detector == "mask_rcnn" and not train_set.has_masks:
        raise ValueError(
            f"mask_rcnn needs masks, and {config.dataset} has boxes only; take faster_rcnn, or a COCO JSON with segmentations"
        )
    return train_set, datasets.load(config.dataset, config.val_split, **given)


def train(config, run, sets=None):
    """Train and evaluate one detector into `run`'s folder (a store.Run; None on ranks other than 0). Returns Trained,
    None on those ranks.

    `sets` are those of `open_sets`, where they are open already.
    Raises TrainingError where a loss or gradient is not finite (the last checkpoint stays), ValueError for a set or
    setting that cannot be trained.
    """
    rank, world = join()
    if rank == 0:
        run.check()
    device = _device(config.device)
    torch.manual_seed(config.seed)
    (train_set, packed), (val_set, val) = packed_sets = _packed(config, sets or open_sets(config), device)
    model = detectors.build(
        config.detector, len(train_set.classes), config.loss, config.weight, config.image_size, config.backbone
    )
    source = _source(config, model, packed, device, rank)
    state = State(model.to(device, memory_format=torch.channels_last), config)
    state.resume(shared(run and run.folder, world), device)
    if rank == 0:
        _say_data(run, packed_sets, _in_both(config, train_set, val_set))
        _forget_after(run, state.history[-1]["step"] if state.history else 0)
        if state.epoch:
            run.update(resumed_after_epoch=state.epoch)
            print(f"resumed in {run.folder}, after epoch {state.epoch} of {config.epochs}", flush=True)
    forward = forward_of(model, config, world, device)
    evaluated_at = _evaluation_epochs(config)
    quiet = True if rank else None
    for epoch in tqdm(
        range(state.epoch, config.epochs), initial=state.epoch, total=config.epochs, desc="epochs", disable=quiet
    ):
        state.history += _epoch(epoch, forward, state, source, rank, world, run)
        state.epoch = epoch + 1
        if rank == 0:
            if epoch + 1 in evaluated_at:
                row = _evaluate(val_set.classes, val, detect(state.averaged, val, config, device))[0]
                state.scores.append({"epoch": epoch + 1} | {name: row[name] for name in ("AP", "AP50", "AP75")})
            state.save(run)
            if not sys.stderr.isatty():  # without a progress bar
                print(f"epoch {epoch + 1} of {config.epochs}: {_progress(state)}", flush=True)
        if world > 1:
            distributed.barrier()
    return _finish(config, run, state, val, val_set, device) if rank == 0 else None


def _progress(state):
    """The loss of the last epoch, and the AP where it was measured, in words."""
    losses = [row["loss"] for row in state.history if row["epoch"] == state.epoch]
    score = [f", AP {row['AP']:.3f}" for row in state.scores if row["epoch"] == state.epoch]
    return f"loss {sum(losses) / len(losses):.4g}{''.join(score)}"


def _finish(config, run, state, val, val_set, device):
    model = state.averaged
    detections = detect(model, val, config, device)
    row, thresholds, classes = _evaluate(val_set.classes, val, detections)
    steps = pd.DataFrame(state.history)
    head = {
        "dataset": val_set.name,
        "detector": config.detector,
        "loss": config.loss,
        "weight": model.box_loss.weight,
        "seed": config.seed,
    }
    row = (
        head
        | row
        | {
            "disjoint": steps.disjoint_count.sum() / max(steps.positives.sum(), 1),
            "images_per_second": steps.images_per_second.median(),
        }
    )
    store.write_atomic(
        run.folder / "model.safetensors", safetensors_bytes({k: v.contiguous() for k, v in model.state_dict().items()})
    )
    last = {"epoch": config.epochs} | {name: row[name] for name in ("AP", "AP50", "AP75")}
    curves = _curves(steps, pd.DataFrame([*state.scores, last]))
    return Trained(
        select([config.loss])[0],
        pd.DataFrame([row]),
        thresholds,
        classes,
        curves,
        model,
        val,
        detections,
        val_set.classes,
    )


def save(trained, run):
    """Write the tables of a finished training into its run folder."""
    for name in ("evaluation", "thresholds", "classes", "curves"):
        run.save_table(name, getattr(trained, name))


def _curves(steps, scores):
    """One row an epoch: means over its steps, and the AP where it was measured."""
    sums = steps.groupby("epoch")
    table = sums[list(steps.columns[2 : steps.columns.get_loc("positives")])].mean()  # loss and its parts
    table.insert(0, "step", sums.step.max())
    count = sums.positives.sum().clip(lower=1)
    table["mean_iou"], table["disjoint"] = sums.iou_sum.sum() / count, sums.disjoint_count.sum() / count
    return table.reset_index().merge(scores, on="epoch", how="left")


# ---- one epoch


def _epoch(epoch, forward, state, source, rank, world, run):
    """Train one epoch; returns a row a step, and logs it on rank 0."""
    config = state.config
    state.model.train()
    torch.manual_seed(
        batches.mixed_seed(config.seed, epoch, rank)
    )  # the proposal samplers draw from the global generator
    batch, order = source.epoch(epoch), batches.order(len(source.packed), config.batch_size, config.seed, epoch)
    pending, rows, clock = [], [], time.perf_counter()
    for number, indices in enumerate(order):
        mine = indices[rank::world]
        images, targets = batch(mine if len(mine) else indices[:1])  # one that does not count, where a rank has none
        step = epoch * len(order) + number
        outcome = state.step(
            partial(forward, counted=len(mine) > 0), images, targets, step / (len(order) * config.epochs)
        )
        pending.append((epoch, step, indices, *outcome))
        if len(pending) == 20 or number + 1 == len(
            order
        ):  # one look at the device for several steps, so that it is not kept waiting
            seconds, clock = time.perf_counter() - clock, time.perf_counter()
            speed = sum(len(entry[2]) for entry in pending) / seconds
            fresh = [row | {"images_per_second": round(speed, 1)} for row in _read(pending, source.packed, world)]
            if rank == 0:
                for row in fresh:
                    run.log(**row)
            rows, pending = rows + fresh, []
    return rows


def _read(pending, packed, world):
    """Move the numbers of several steps to the CPU at once; stop at the first that is not finite.

    Losses are means over ranks, positives sums.
    """
    names = [*pending[0][3], *POSITIVES, "gradient"]
    values = torch.stack(
        [
            torch.stack([*losses.values(), *positives.values(), norm]).float()
            for _, _, _, losses, positives, norm in pending
        ]
    )
    if world > 1:
        values[:, [name not in POSITIVES for name in names]] /= world
        distributed.all_reduce(values)
    rows = []
    for (epoch, step, indices, losses, _, _), line in zip(pending, values.tolist(), strict=True):
        row = dict(zip(names, line, strict=True))
        if not all(map(math.isfinite, line)):
            ids = [packed.truths[i].get("image_id", i) for i in indices.tolist()]
            raise TrainingError(
                f"step {step}: {row} is not finite for images {ids}; the last checkpoint is kept. Lower learning_rate or weight"
            )
        count = row.pop("count")
        rows.append(
            {"epoch": epoch + 1, "step": step + 1, "loss": sum(row[name] for name in losses)}
            | {name: row[name] for name in losses}
            | {"positives": count, "iou_sum": row["iou"], "disjoint_count": row["disjoint"]}
            | {
                "mean_iou": row["iou"] / max(count, 1),
                "disjoint": row["disjoint"] / max(count, 1),
                "gradient": row["gradient"],
            }
        )
    return rows


def forward_of(model, config, world, device):
    """The callable that trains: the model under autocast, compiled or spread over ranks where asked.

    The gradient of several ranks is that of one process with all of their images, but for what each rank has of its
    own: the statistics of batch normalisation, augmentations, and the R-CNNs' random samples. Images that are not
    `counted` add nothing.
    """
    if config.compile:
        model.compile()
    ready = (
        DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
        if world > 1
        else model
    )

    def forward(images, targets, counted=True):
        with autocast(config.precision, device):
            losses, counts = ready(images, targets)
        if world > 1:
            counts["images"] = counts["count"].new_tensor(len(targets))
            losses, counts = shares(losses, counts, model.divided_by, counted)
        return losses, {name: counts[name] for name in POSITIVES}

    return forward


def shares(losses, counts, divided_by, counted):
    """This rank's (losses, counts), such that the mean over ranks of each loss is that of one process; zeros where they
    are not `counted`.

    A loss was divided by this rank's own count, the one that `divided_by` names for it, and is divided by the mean of
    all ranks' instead.
    """
    counts = {name: value * counted for name, value in counts.items()}
    own = torch.stack([counts[divided_by[name]] for name in losses])
    total = own.clone()
    distributed.all_reduce(total)
    factors = counted * own.clamp(min=1) * distributed.get_world_size() / total.clamp(min=1)
    return {name: value * factor for (name, value), factor in zip(losses.items(), factors, strict=True)}, counts


def autocast(precision, device):
    """bfloat16 where it pays ("auto": GPUs, and processors with bf16 instructions), or as asked."""
    able = device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return (
        torch.autocast(device.type, torch.bfloat16)
        if precision == "bfloat16" or (precision == "auto" and able)
        else contextlib.nullcontext()
    )


# ---- what a checkpoint holds


class State:
    """What a checkpoint holds: weights, their moving average, the optimizer and the history so far."""

    def __init__(self, model, config):
        self.model, self.config = model, config
        decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
        others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": 5e-4 if config.optimizer == "sgd" else 0.05},
            {"params": others, "weight_decay": 0.0},
        ]
        if config.optimizer == "sgd":
            self.optimizer = torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.9, foreach=True)
        else:
            self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, foreach=True)
        self.averaged = copy.deepcopy(model).eval().requires_grad_(False)  # what is evaluated
        self.epoch, self.updates, self.history, self.scores = 0, 0, [], []

    def step(self, forward, images, targets, progress):
        """One update; returns losses, positives (detached) and the norm of the gradient before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * rate(progress, self.config)
        losses, positives = forward(images, targets)
        self.optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        self.updates += 1
        self._average()
        return {name: value.detach() for name, value in losses.items()}, positives, norm.detach()

    @torch.no_grad()
    def _average(self):
        decay = min(self.config.ema, (1 + self.updates) / (10 + self.updates))
        pairs = list(zip(self.averaged.state_dict().values(), self.model.state_dict().values(), strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([old for old, _ in floats], [new for _, new in floats], 1 - decay)
        for old, new in pairs:
            if not old.is_floating_point():
                old.copy_(new)

    def save(self, run):
        """Write checkpoint.pt, all of it or nothing."""
        buffer = io.BytesIO()
        content = {
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        content["config"] = self.config.model_dump()
        torch.save(content | {name: getattr(self, name) for name in self.COUNTED}, buffer)
        store.write_atomic(run.folder / "checkpoint.pt", buffer.getvalue())

    COUNTED = ("epoch", "updates", "history", "scores")

    def resume(self, folder, device):
        """Go on from the folder's checkpoint where there is one. Raises ValueError where its configuration is
        another."""
        path = folder / "checkpoint.pt"
        if not path.exists():
            return
        content = torch.load(path, map_location=device, weights_only=True)
        config, saved = self.config.model_dump(), content.get("config", {})
        changed = [
            f"{name} {saved.get(name)!r}, not {value!r}" for name, value in config.items() if saved.get(name) != value
        ]
        if changed:
            raise ValueError(f"{path} is of a training with {'; '.join(changed)}; train in a fresh run folder")
        self.model.load_state_dict(content["model"])
        self.averaged.load_state_dict(content["averaged"])
        self.optimizer.load_state_dict(content["optimizer"])
        for name in self.COUNTED:
            setattr(self, name, content[name])


def _forget_after(run, step):
    """Cut metrics.jsonl after `step`: what an interrupted epoch logged is run again."""
    path = run.folder / "metrics.jsonl"
    if path.exists():
        lines = [
            line for line in path.read_text().splitlines() if line.endswith("}") and json.loads(line)["step"] <= step
        ]
        store.write_atomic(path, "".join(line + "\n" for line in lines))


def rate(progress, config):
    """Share of the learning rate at `progress` (0..1): a linear warm-up, then a half cosine, or a tenth after 80 % and
    a hundredth after 90 %."""
    if progress < config.warmup:
        return max(progress / config.warmup, 1e-2)
    if config.schedule == "step":
        return 1.0 if progress < 0.8 else 0.1 if progress < 0.9 else 0.01
    return 0.01 + 0.99 * (1 + math.cos(math.pi * (progress - config.warmup) / (1 - config.warmup))) / 2


# ---- data, evaluation, devices


def _packed(config, sets, device):
    """((training set, its squares), (validation set, its squares))."""
    (train_set, val_set), cache = sets, batches.cache_folder()
    packed = batches.pack(train_set, config.image_size, config.detector == "mask_rcnn", config.images, cache, device)
    if not sum(len(batches.training_truth(truth)["labels"]) for truth in packed.truths):
        raise ValueError(
            f"{config.dataset} {config.train_split}: no object to train on is left; run `giou-repro data check {config.dataset}`"
        )
    return (train_set, packed), (
        val_set,
        batches.pack(val_set, config.image_size, False, config.val_images, cache, device),
    )


def _source(config, model, packed, device, rank):
    """Where batches come from: the squares, or with a frozen backbone its features of them."""
    if not config.frozen_views:
        return batches.Fresh(packed, device, config.augment, config.seed, rank)
    model.backbone.requires_grad_(False)

    def look(images):
        model.backbone.eval()
        with torch.no_grad(), autocast(config.precision, device):
            return model.backbone(images)

    return batches.Remembered(packed, device, config.augment, config.seed, config.frozen_views, look)


def _in_both(config, train_set, val_set):
    """How many validation images are training images too."""
    if config.dataset == "shapes":
        return min(len(train_set), len(val_set)) if config.train_split == config.val_split else 0
    return datasets.in_both(train_set.pictures[: config.images], val_set.pictures[: config.val_images])


def _say_data(run, sets, in_both):
    """Record what was read, what was left out and how many images are in both sets; print what was left out, and
    warn."""
    record = {}
    for dataset, packed in sets:
        record[dataset.split] = {
            "name": dataset.name,
            "checksum": dataset.checksum,
            "images": len(packed),
            "defects": len(dataset.defects),
        }
        record[dataset.split] |= {"recipe": getattr(dataset, "recipe", dataset.checksum), "unreadable": packed.skipped}
        if dataset.defects or packed.skipped:
            print(f"{dataset.name} {dataset.split}: {datasets.summary(dataset.defects)}", *packed.skipped, sep="\n  ")
    (train_set, _), (val_set, packed) = sets
    record[val_set.split]["also_trained_on"] = in_both
    run.update(data=record)
    if in_both:
        print(
            f"WARNING: {in_both} of {len(packed)} images of {val_set.split} are images of {train_set.split} too.",
            "WARNING: AP is of images that were trained on.",
            'WARNING: For new ones divide a split: train_split "all[:80%]", val_split "all[80%:]".',
            sep="\n",
            file=sys.stderr,
        )


def detect(model, packed, config, device):
    """Boxes, scores and labels found in every square of `packed`, on the CPU, in pixels of the squares."""
    model.eval()
    found = []
    with torch.inference_mode(), autocast(config.precision, device):
        for indices in torch.arange(len(packed)).split(config.batch_size):
            images, _ = batches.batch(packed, indices, device)
            for answer in model(images):  # masks are not scored, and large
                found.append(
                    {
                        "boxes": answer["boxes"].float().cpu(),
                        "scores": answer["scores"].float().cpu(),
                        "labels": answer["labels"].cpu(),
                    }
                )
    return found


def _evaluate(classes, val, detections):
    """average_precision.evaluate in the pixels of the images as they are."""
    truths = [val.original(truth, index) for index, truth in enumerate(val.truths)]
    return average_precision.evaluate(
        truths, [val.original(found, index) for index, found in enumerate(detections)], classes
    )


def _evaluation_epochs(config):
    """The epochs after which AP is measured: `evaluations` of them, evenly spread, and none at the end, which has its
    own."""
    return {round(config.epochs * (i + 1) / (config.evaluations + 1)) for i in range(config.evaluations)} - {
        0,
        config.epochs,
    }


def _device(name):
    """ "auto" is a GPU where there is one; each rank of torchrun has its own."""
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device {name!r} is not one of auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda: torch finds no GPU; say auto or cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    return device


def join():
    """(rank, world size); joins the group of `torchrun`, or (0, 1) without it."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return 0, 1
    if not distributed.is_initialized():
        shared_store, rank, world = next(distributed.rendezvous("env://"))
        # the store outlives a restart: without a prefix of its own, a restarted rank looks for its dead peers'
        # addresses
        attempt = distributed.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", shared_store)
        distributed.init_process_group(
            "nccl" if torch.cuda.is_available() else "gloo", store=attempt, rank=rank, world_size=world
        )
    return distributed.get_rank(), distributed.get_world_size()


def shared(value, world):
    """Rank 0's value, on every rank."""
    box = [value]
    if world > 1:
        distributed.broadcast_object_list(box)
    return box[0]
