"""Training throughput: our loop against the loop of torchvision's reference scripts, the same model on the same images,
in one run.

    python -m benchmarks.training [--device cuda]

The reference loop (torchvision's references/detection): a DataLoader with workers that decodes and resizes JPEG files
and flips them, float32, SGD, the loss read back at every step. Ours: squares decoded once, augmented on the device
(flips, zooms, moves, recolours), channels-last, bfloat16 where the hardware has it, averaged weights, clipped
gradients, the losses read back every 20 steps.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.io import decode_image, write_jpeg
from torchvision.transforms.v2 import functional as images_of

from giou_repro import detectors
from giou_repro.data import datasets
from giou_repro.training import batches, ranks
from giou_repro.training.checkpoint import Training
from giou_repro.training.loop import configure

AIMS = {"cpu": 1.5, "cuda": 2.0}
POOLED = ("faster_rcnn", "mask_rcnn")  # without an aim: RoIAlign, alike in both, takes most of a step on a CPU
SIZE, IMAGES, BATCH, ROUNDS = 128, 48, 8, 3  # one round without an aim
ORIGINAL = 320  # px of the files' images


class Files(Dataset):
    """JPEG files and their truths, decoded, resized and flipped when they are asked for, as the reference scripts
    do."""

    def __init__(self, folder, dataset):
        self.truths = []
        self.paths = [Path(folder) / f"{index}.jpg" for index in range(len(dataset))]
        for path, (image, truth) in zip(self.paths, (dataset[index] for index in range(len(dataset))), strict=True):
            write_jpeg(image, str(path))
            self.truths.append(
                {"boxes": truth["boxes"] * (SIZE / ORIGINAL), "labels": truth["labels"], "masks": truth["masks"]}
            )

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        image = images_of.resize(decode_image(str(self.paths[index])), [SIZE, SIZE], antialias=True)
        truth = self.truths[index] | {"masks": images_of.resize(self.truths[index]["masks"], [SIZE, SIZE])}
        if torch.rand(()) < 0.5:
            image = image.flip(-1)
            boxes = truth["boxes"].clone()
            boxes[:, [0, 2]] = SIZE - boxes[:, [2, 0]]
            truth = {"boxes": boxes, "labels": truth["labels"], "masks": truth["masks"].flip(-1)}
        return image.float() / 255, truth


def reference(model, loader, device):
    """Images a second of the reference loop over one pass of `loader`."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4)
    seen, start = 0, time.perf_counter()
    for images, targets in loader:
        images = torch.stack(images).to(device)
        losses, _ = model(images, [{key: value.to(device) for key, value in target.items()} for target in targets])
        loss = sum(losses.values())
        loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen += len(images)
    return seen / (time.perf_counter() - start)


def ours(state, packed, config, device):
    """Images a second of training's own step over as many images."""
    forward = ranks.forward_of(state.model, config, 1, device)
    generator, seen, kept, start = torch.Generator().manual_seed(0), 0, [], time.perf_counter()
    state.model.train()
    for indices in torch.arange(len(packed)).split(BATCH):
        images, targets = batches.batch(packed, indices, device, generator)
        kept.append(state.step(forward, images, targets, 0.5)[2])
        seen += len(indices)
    torch.stack(kept).cpu()
    return seen / (time.perf_counter() - start)


def measure(device="cpu"):
    """Rows (what, our seconds an image, peer, its seconds an image, ratio, aim, met), a row a detector."""
    device, rows = torch.device(device), []
    dataset = datasets.load("shapes", "train", images=IMAGES, image_size=ORIGINAL)
    packed = batches.pack(dataset, SIZE, masks=True, device=device)
    with tempfile.TemporaryDirectory() as folder:
        loader = DataLoader(
            Files(folder, dataset), BATCH, shuffle=True, num_workers=2, collate_fn=transposed, persistent_workers=True
        )
        for name in detectors.DETECTORS:
            config = configure(detector=name, image_size=SIZE, batch_size=BATCH, learning_rate=1e-4)
            plain, fast = (detectors.build(name, len(dataset.classes), "giou", None, SIZE).to(device) for _ in range(2))
            state = Training(fast.to(memory_format=torch.channels_last), config)
            aim = AIMS[device.type] if name not in POOLED or device.type == "cuda" else None
            rounds = range(1 + (ROUNDS if aim else 1))
            pairs = [(ours(state, packed, config, device), reference(plain, loader, device)) for _ in rounds][1:]
            mine, theirs = (statistics.median(values) for values in zip(*pairs, strict=True))
            ratio = mine / theirs
            rows.append(
                (
                    f"training {name}, an image",
                    1 / mine,
                    "torchvision's reference loop",
                    1 / theirs,
                    ratio,
                    aim,
                    ratio >= aim if aim else None,
                )
            )
    return rows


def transposed(pairs):
    """[(image, target), …] → (images, targets): the reference scripts' collate function."""
    return tuple(zip(*pairs, strict=True))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    for what, mine, peer, theirs, ratio, aim, met in measure(parser.parse_args().device):
        speeds = f"{what:<32}{1 / mine:7.1f} images/s   {peer} {1 / theirs:7.1f}   ratio {ratio:5.2f}"
        print(speeds, f"  aim {aim}   {'met' if met else 'not met'}" if aim else "")
