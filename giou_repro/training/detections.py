"""A run's detections.npz: every true box and every detection of its validation images, of which AP is measured.

So AP can be had again, at other thresholds or of images drawn anew (a bootstrap), without the model. N images, n true
boxes and k detections, in the order of the images; boxes are xyxy in continuous pixels of the images as they are:

    classes             (C,) names              image_id              (N,) of the data set
    truth_count         (N,) of each image      detection_count       (N,) of each image, at most 100
    truth_boxes         (n, 4) float32          detection_boxes       (k, 4) float32
    truth_labels        (n,) from 0             detection_labels      (k,) from 0
    truth_difficult     (n,) bool               detection_scores      (k,) float32, falling within an image
    truth_crowd         (n,) bool
    truth_area          (n,) float32, px²
"""

import numpy as np

KEYS = {
    "truth": ("boxes", "labels", "difficult", "crowd", "area"),
    "detection": ("boxes", "labels", "scores"),
}


def arrays(truths, detections, classes) -> dict:
    """The file's arrays, of lists of a dict an image, as the loop has them."""
    stacked = {"classes": np.array(classes), "image_id": np.array([truth["image_id"] for truth in truths])}
    for kind, images in (("truth", truths), ("detection", detections)):
        stacked[f"{kind}_count"] = np.array([len(image["labels"]) for image in images])
        stacked |= {f"{kind}_{key}": np.concatenate([image[key] for image in images]) for key in KEYS[kind]}
    return stacked


def read(path) -> tuple[list, list, tuple]:
    """(truths, detections, classes) of the file at a path, as average_precision.evaluate takes them."""
    with np.load(path) as file:
        content = dict(file)
    lists = []
    for kind, keys in KEYS.items():
        starts = content[f"{kind}_count"].cumsum()[:-1]
        columns = zip(*(np.split(content[f"{kind}_{key}"], starts) for key in keys), strict=True)
        lists.append([dict(zip(keys, values, strict=True)) for values in columns])
    truths, detections = lists
    for truth, number in zip(truths, content["image_id"].tolist(), strict=True):
        truth["image_id"] = number
    return truths, detections, tuple(content["classes"].tolist())
