"""Pascal VOC 07+12, RetinaNet on Swin-L: frozen trunk as it stands.

Values of Mona's public configs: AdamW 1e-4, weight decay 0.05, drop path 0.2 (also in
the frozen trunk), 4 epochs x 3 repeats, one image on each of two GPUs, 1000 x 600.
Their ``frozen_stages=1`` is left out: it holds the patch embedding, which is frozen
anyway but for full tuning.
"""

_base_ = [
    '../_base_/models/retinanet_swin_l.py',
    '../_base_/datasets/voc.py',
    '../_base_/schedules/voc_4e.py',
    '../_base_/default_runtime.py',
]

dataset = 'voc'
preprocessing = dict(normalisation='imagenet')
