"""Images with boxes, labels and masks: generated scenes, Pascal VOC and COCO, checked as they are opened.

`load` opens a split of any of them. `defects` names what can be wrong with a file, and what is done about it.
"""

from giou_repro.data.datasets import Defect, Unreadable, check, download, load, report, splits, summary

__all__ = ["Defect", "Unreadable", "check", "download", "load", "report", "splits", "summary"]
