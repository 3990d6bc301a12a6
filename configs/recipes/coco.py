"""COCO 2017, Cascade Mask R-CNN on Swin-B: frozen trunk as it stands.

Values of Mona's public configs: AdamW 1e-4, weight decay 0.05, drop path 0.3 (also in
the frozen trunk), 36 epochs, 16 images a step, multi-scale 480-800, evaluated on
val2017; the figures in Mona's paper are for test-dev.
"""

_base_ = [
    '../_base_/models/cascade_mask_rcnn_swin_b.py',
    '../_base_/datasets/coco.py',
    '../_base_/schedules/coco_36e.py',
    '../_base_/default_runtime.py',
]

dataset = 'coco'
preprocessing = dict(normalisation='imagenet')
