"""COCO average precision of 5,000 images, 150,000 detections of 80 classes, by IoU and by GIoU: ours beside pycocotools
and faster-coco-eval.

    python benchmarks/average_precision.py

Seconds of CPU time, the median of interleaved rounds in one process; of pycocotools, which takes 20 s, one round. Ours
begins with lists of tensors, as a detector gives them; the peers begin with annotations already loaded and indexed, and
know only IoU. All three must agree by IoU to 1e-12.
"""

import contextlib
import io
import statistics
import time

import numpy as np
import pycocotools.coco
import pycocotools.cocoeval
import torch
from faster_coco_eval import COCO, COCOeval_faster

from giou_repro.training import average_precision

AIM = 10.0  # times pycocotools' speed


def measure(images=5000, rounds=3):
    """Rows (what, ours_seconds, peer, peer_seconds, ratio, aim, met); aim and met are None where nothing was
    promised."""
    truths, detections, classes = scenes(images)
    seconds, statistic = {}, {}
    peers = {
        "pycocotools": (pycocotools.coco.COCO, pycocotools.cocoeval.COCOeval),
        "faster-coco-eval": (COCO, COCOeval_faster),
    }
    loaded = {
        name: (annotated(reader, truths, detections, len(classes)), evaluator)
        for name, (reader, evaluator) in peers.items()
    }
    for turn in range(rounds):
        for overlap in average_precision.OVERLAPS:
            statistic[overlap] = timed(
                seconds,
                overlap,
                lambda name=overlap: list(average_precision.coco(truths, detections, classes, name).summary.values()),
            )
        for name, (sets, evaluator) in loaded.items():
            if name == "pycocotools" and turn:  # it takes 20 s, and one round tells it apart
                continue
            statistic[name] = timed(seconds, name, lambda sets=sets, evaluator=evaluator: run(evaluator(*sets, "bbox")))
    for name in peers:
        np.testing.assert_allclose(statistic["iou"], statistic[name], rtol=0, atol=1e-12)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    rows = []
    for overlap, label in (("iou", "AP by IoU"), ("giou", "AP by GIoU")):
        for peer, aim in (("pycocotools", AIM), ("faster-coco-eval", None)):
            ratio = median[peer] / median[overlap]
            rows.append((label, median[overlap], f"{peer}, IoU", median[peer], ratio, aim, aim and ratio >= aim))
    return rows


def timed(seconds, name, work):
    """What `work` gives, with its CPU time added to `seconds`."""
    begin = time.process_time()
    answer = work()
    seconds.setdefault(name, []).append(time.process_time() - begin)
    return answer


def run(evaluator):
    """A COCOeval's twelve statistics, without its printing."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats


def scenes(images, detections_each=30, num_classes=80, seed=0):
    """Truths (1 to 13 an image, 2 % of them crowds) and detections, most of them moved truths."""
    rng = np.random.default_rng(seed)
    truths, detections = [], []
    for _ in range(images):
        count = rng.integers(1, 14)
        size = np.exp(rng.uniform(np.log(10), np.log(300), (count, 2)))
        corner = rng.uniform(0, 1, (count, 2)) * np.maximum([640, 480] - size, 1)
        labels, source = rng.integers(0, num_classes, count), rng.integers(0, count, detections_each)
        moved = corner[source] + rng.normal(0, 0.12, (detections_each, 2)) * size[source]
        scaled = size[source] * np.exp(rng.normal(0, 0.12, (detections_each, 2)))
        named = np.where(
            rng.random(detections_each) < 0.7, labels[source], rng.integers(0, num_classes, detections_each)
        )
        truths.append(
            tensors(boxes=np.concatenate([corner, corner + size], 1), labels=labels, crowd=rng.random(count) < 0.02)
        )
        detections.append(
            tensors(
                boxes=np.concatenate([moved, moved + scaled], 1),
                labels=named,
                scores=rng.random(detections_each).round(3),
            )
        )
    return truths, detections, [str(index) for index in range(num_classes)]


def tensors(**columns):
    """Each column as a tensor, numbers with a fraction in float32."""
    return {
        name: torch.tensor(values, dtype=torch.float32 if values.dtype == float else None)
        for name, values in columns.items()
    }


def annotated(reader, truths, detections, num_classes):
    """Truths and detections as two of a peer's COCO objects."""

    def entries(images):
        for index, image in enumerate(images):
            boxes = image["boxes"].double()
            boxes = torch.cat((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), 1).tolist()
            for row, (box, label) in enumerate(zip(boxes, image["labels"].tolist(), strict=True)):
                yield image, row, dict(image_id=index, category_id=label, bbox=box)

    annotations = [
        entry | dict(area=entry["bbox"][2] * entry["bbox"][3], iscrowd=int(image["crowd"][row]))
        for image, row, entry in entries(truths)
    ]
    results = [entry | dict(score=float(image["scores"][row])) for image, row, entry in entries(detections)]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = reader()
        coco.dataset = {
            "images": [dict(id=index) for index in range(len(truths))],
            "annotations": [entry | dict(id=number) for number, entry in enumerate(annotations, start=1)],
            "categories": [dict(id=index, name=str(index)) for index in range(num_classes)],
        }
        coco.createIndex()
        return coco, coco.loadRes(results)


if __name__ == "__main__":
    for what, ours, peer, theirs, ratio, aim, met in measure():
        verdict = "" if aim is None else f"  aim {aim:g}: {'met' if met else 'NOT met'}"
        print(f"{what:<11} {ours:6.2f} s   {peer:<22} {theirs:6.2f} s   {ratio:5.1f} ×{verdict}")
