"""NYU Depth v2, segmentation and depth from one Swin-T: frozen trunk, heads train.

Values of MTLoRA's public code, since Polyhistor and VMT-Adapter give none: AdamW, 5e-4
per 512 images, weight decay 0.05, drop path 0.2 (also in the frozen trunk), 300 epochs,
32 crops of 448 x 448, both losses with weight 1.
"""

_base_ = [
    '../_base_/models/multi_task_swin_t.py',
    '../_base_/datasets/nyud_mt.py',
    '../_base_/schedules/nyud_mt_300e.py',
    '../_base_/default_runtime.py',
]

preprocessing = dict(normalisation='imagenet')
default_hooks = dict(checkpoint=dict(interval=20))
