"""CIFAR-100 of VTAB-1k, ViT-B/16: linear probing as it stands.

Values common to the NOAH family of code bases: AdamW 1e-3, weight decay 1e-4, batch 64,
100 epochs, no augmentation, no label smoothing, drop path 0.1. The frozen trunk runs
without drop path unless frozen_drop_path says otherwise, so 0.1 acts on trained trunks
only. Trains on all 1,000 images; the last epoch is scored on the test set, once.
"""

_base_ = [
    '../_base_/models/vit_b16_in21k.py',
    '../_base_/datasets/vtab1k.py',
    '../_base_/schedules/adamw_100e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(backbone=dict(drop_path_rate=0.1)), head=dict(num_classes=100)
)
