"""Class names and ids of the dense sets, in the order of their labels."""

from __future__ import annotations

COCO_CLASSES = (
    *('person', 'bicycle', 'car', 'motorcycle', 'airplane', 'bus', 'train', 'truck'),
    *('boat', 'traffic light', 'fire hydrant', 'stop sign', 'parking meter'),
    *('bench', 'bird', 'cat', 'dog', 'horse', 'sheep', 'cow', 'elephant', 'bear'),
    *('zebra', 'giraffe', 'backpack', 'umbrella', 'handbag', 'tie', 'suitcase'),
    *('frisbee', 'skis', 'snowboard', 'sports ball', 'kite', 'baseball bat'),
    *('baseball glove', 'skateboard', 'surfboard', 'tennis racket', 'bottle'),
    *('wine glass', 'cup', 'fork', 'knife', 'spoon', 'bowl', 'banana', 'apple'),
    *('sandwich', 'orange', 'broccoli', 'carrot', 'hot dog', 'pizza', 'donut'),
    *('cake', 'chair', 'couch', 'potted plant', 'bed', 'dining table', 'toilet'),
    *('tv', 'laptop', 'mouse', 'remote', 'keyboard', 'cell phone', 'microwave'),
    *('oven', 'toaster', 'sink', 'refrigerator', 'book', 'clock', 'vase'),
    *('scissors', 'teddy bear', 'hair drier', 'toothbrush'),
)
_COCO_GAPS = frozenset({12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
COCO_IDS = tuple(number for number in range(1, 91) if number not in _COCO_GAPS)
"""The official category ids: 1-90 with ten numbers unused."""

VOC_CLASSES = (
    *('aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat'),
    *('chair', 'cow', 'diningtable', 'dog', 'horse', 'motorbike', 'person'),
    *('pottedplant', 'sheep', 'sofa', 'train', 'tvmonitor'),
)
