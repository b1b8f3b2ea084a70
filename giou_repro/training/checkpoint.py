"""What a training has come to, and its file checkpoint.pt: weights, their moving average, optimizer, history."""

import io
import json
import math
from functools import partial

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

OPTIMIZERS = {"adamw": torch.optim.AdamW, "sgd": partial(torch.optim.SGD, momentum=0.9)}
WEIGHT_DECAY = {"sgd": 5e-4, "adamw": 0.05}  # of weights; biases and normalisations have none
KEPT = ("epoch", "history", "scores")
MODULES = ("model", "average", "optimizer", "loss")  # of the last, what it remembers


class Training:
    """A model in training: its optimizer, the moving average of its weights, which is what is evaluated, a row of
    numbers a step (`history`) and an AP where it was measured (`scores`)."""

    def __init__(self, model, config):
        self.model, self.config = model, config
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": WEIGHT_DECAY[config.optimizer]},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = OPTIMIZERS[config.optimizer](groups, lr=config.learning_rate, fused=True)
        self.loss = model.box_loss.memory
        self.average = AveragedModel(model).eval().requires_grad_(False)
        self.parameters = list(model.parameters())  # once: to walk through all modules takes as long as a layer
        self.averaged = list(zip(_tensors(self.average.module), _tensors(model), strict=True))
        self.epoch, self.history, self.scores = 0, [], []

    def step(self, forward, images, targets, progress):
        """One update; returns losses, positives (detached) and the norm of the gradient before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * rate(progress, self.config)
        losses, positives = forward(images, targets)
        self.optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
        self.optimizer.step()
        self._follow()
        return {name: value.detach() for name, value in losses.items()}, positives, norm.detach()

    def _follow(self):
        """Move the average towards the model, at first all the way. Whole numbers, counts of batches, are copied."""
        updates = int(self.average.n_averaged)  # on the CPU; the decay rises, so that first weights are soon forgotten
        decay = min(self.config.ema, (1 + updates) / (10 + updates)) if updates else 0
        floats, counts = self.averaged
        get_ema_multi_avg_fn(decay)(*floats, updates)
        for average, value in zip(*counts, strict=True):
            average.copy_(value)
        self.average.n_averaged += 1

    def save(self, run):
        """Write checkpoint.pt, all of it or nothing."""
        content = {name: getattr(self, name).state_dict() for name in MODULES}
        content |= {name: getattr(self, name) for name in KEPT} | {"config": self.config.model_dump()}
        buffer = io.BytesIO()
        torch.save(content, buffer)
        run.save("checkpoint.pt", buffer.getvalue())

    def resume(self, folder, device):
        """Go on from the folder's checkpoint where there is one. Raises ValueError where its configuration is
        another."""
        path = folder / "checkpoint.pt"
        if not path.exists():
            return
        content = torch.load(path, map_location=device, weights_only=True)
        before, now = content["config"], self.config.model_dump()
        changed = [f"{name} {before.get(name)!r}, not {now[name]!r}" for name in now if before.get(name) != now[name]]
        if changed:
            raise ValueError(f"{path} is of a training with {'; '.join(changed)}; train in a new run folder")
        for name in MODULES:
            getattr(self, name).load_state_dict(content.get(name, {}) if name == "loss" else content[name])
        for name in KEPT:
            setattr(self, name, content[name])


def _tensors(module):
    """Parameters and buffers: those of floating point, and the others."""
    tensors = [*module.parameters(), *module.buffers()]
    return [[t for t in tensors if t.is_floating_point() is floats] for floats in (True, False)]


def rate(progress, config):
    """Share of the learning rate at `progress` (0..1): a linear warm-up, then a half cosine, or a tenth after 80 % and
    a hundredth after 90 %."""
    if progress < config.warmup:
        return max(progress / config.warmup, 1e-2)
    if config.schedule == "step":
        return 1.0 if progress < 0.8 else 0.1 if progress < 0.9 else 0.01
    return 0.01 + 0.99 * (1 + math.cos(math.pi * (progress - config.warmup) / (1 - config.warmup))) / 2


def cut_log(run, step):
    """Cut metrics.jsonl after `step`: what an interrupted epoch logged is run again."""
    path = run.folder / "metrics.jsonl"
    if path.exists():
        whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("}\n")]
        run.save(path.name, "".join(line for line in whole if json.loads(line)["step"] <= step))
