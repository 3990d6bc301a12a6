# What the 19 tasks of VTAB-1k share: ViT-B/16, linear probing as it stands.
#
# Values common to the NOAH family of code bases: AdamW 1e-3, weight decay 1e-4, batch
# 64, 100 epochs, no augmentation, no label smoothing, drop path 0.1. The frozen trunk
# runs without drop path unless frozen_drop_path says otherwise, so 0.1 acts on trained
# trunks only. Trains on all 1,000 images; the last epoch is scored, once, on the test
# set.
_base_ = [
    '../models/vit_b16_in21k.py',
    '../datasets/vtab1k.py',
    '../schedules/adamw_100e.py',
    '../default_runtime.py',
]

preprocessing = dict(
    normalisation='half',  # what the checkpoint saw
    augmentation='plain',
    interpolation='bicubic',
    size=224,
    cache=1000,
)
model = dict(backbone=dict(backbone=dict(drop_path_rate=0.1)))
# V-PETL Bench: ImageNet statistics, bilinear, drop path in the frozen trunk too, and
# timm's cosine, which its scripts step after each epoch.
published = dict(
    preprocessing=dict(normalisation='imagenet', interpolation='bilinear'),
    model=dict(backbone=dict(frozen_drop_path=True)),
)
timm = dict(late=True)
