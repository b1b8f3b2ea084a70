"""Where a model trains: its device and precision; and several processes that train one, whose gradient is that of one
process."""

import contextlib
import os

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from giou_repro import devices

POSITIVES = ("count", "iou", "disjoint")  # what is logged of a detector's positives


def join() -> tuple[int, int]:
    """(rank, world size); joins the group of `torchrun`, or (0, 1) without it."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return 0, 1
    if not distributed.is_initialized():
        rendezvous, rank, world = next(distributed.rendezvous("env://"))
        # the store outlives a restart: without a prefix of its own, a restarted rank finds its dead peers' addresses
        store = distributed.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", rendezvous)
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, store=store, rank=rank, world_size=world)
    return distributed.get_rank(), distributed.get_world_size()


def device(name: str) -> torch.device:
    """The device `name`, which becomes torch's current one; of "auto" and "cuda" each rank of a machine has its own."""
    chosen = devices.resolve(name)
    if chosen.type == "cuda":
        if ":" not in name:
            chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(chosen)
    return chosen


def broadcast(value, world):
    """Rank 0's value, on every rank."""
    values = [value]
    if world > 1:
        distributed.broadcast_object_list(values)
    return values[0]


def forward_of(model, config, world, device):
    """The callable that trains: the model under autocast, compiled or distributed over ranks as configured.

    The gradient of several ranks is that of one process with all of their images, but for what each rank has of its
    own: the statistics of batch normalisation, augmentations, and the R-CNNs' random samples. Images that are not
    `counted` add nothing.
    """
    if config.compile:
        model.compile()
    distributed_model = model
    if world > 1:
        distributed_model = DistributedDataParallel(model, [device.index] if device.type == "cuda" else None)

    def forward(images, targets, counted=True):
        with autocast(config.precision, device):
            losses, positives = distributed_model(images, targets)
        if world > 1:
            positives["images"] = positives["count"].new_tensor(len(targets))
            losses, positives = shares(losses, positives, model.divided_by, counted)
        return losses, {name: positives[name] for name in POSITIVES}

    return forward


def shares(losses, positives, divided_by, counted):
    """This rank's (losses, positives), such that the mean over ranks of each loss is that of one process; zeros where
    they are not `counted`.

    A loss was divided by this rank's own count, the one that `divided_by` names for it, and is divided by the mean of
    all ranks' instead.
    """
    positives = {name: value * counted for name, value in positives.items()}
    own = torch.stack([positives[divided_by[name]] for name in losses])
    total = own.clone()
    distributed.all_reduce(total)
    factors = counted * own.clamp(min=1) * distributed.get_world_size() / total.clamp(min=1)
    return {name: value * factor for (name, value), factor in zip(losses.items(), factors, strict=True)}, positives


def autocast(precision, device):
    """bfloat16 where it pays ("auto": GPUs, and processors with bf16 instructions), or as configured."""
    able = device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if precision == "bfloat16" or (precision == "auto" and able):
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()
