"""Images with boxes, labels and masks: generated scenes, Pascal VOC, COCO and YOLO text, checked as they are opened.

`datasets.load` opens a split of any of them, `report` checks all of it. `defects` names what can be wrong with a file,
and what is done about it.
"""
