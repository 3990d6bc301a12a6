"""CUB-200-2011, ViT-B/16: linear probing as it stands.

Values of V-PETL Bench's FGVC scripts, the same for all its methods: AdamW 1e-3, weight
decay 0.05, batch 64, 100 epochs, drop path 0.1 (on trained trunks only, see
frozen_drop_path), short side 256, random crop 224, flip. Trains on train.json, chooses
on val.json, reports the last epoch on test.json.
"""

_base_ = [
    '../_base_/models/vit_b16_in21k.py',
    '../_base_/datasets/cub_200_2011.py',
    '../_base_/schedules/adamw_100e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(backbone=dict(drop_path_rate=0.1)), head=dict(num_classes=200)
)
optim_wrapper = dict(optimizer=dict(weight_decay=0.05))
