# What the five fine-grained sets share: ViT-B/16, linear probing as it stands.
#
# Values of V-PETL Bench's FGVC scripts, the same for all its methods but for the rate:
# AdamW, weight decay 0.05, batch 64, 100 epochs, drop path 0.1 (on trained trunks only,
# see frozen_drop_path), short side 256, random crop 224, flip. Trains on train.json,
# chooses on val.json, reports the last epoch on test.json.
_base_ = [
    '../models/vit_b16_in21k.py',
    '../datasets/fgvc.py',
    '../schedules/adamw_100e.py',
    '../default_runtime.py',
]

preprocessing = dict(
    normalisation='half',  # what the checkpoint saw
    augmentation='fgvc',
    interpolation='bicubic',
    size=224,
)
model = dict(backbone=dict(backbone=dict(drop_path_rate=0.1)))
optim_wrapper = dict(optimizer=dict(weight_decay=0.05))
published = dict(
    preprocessing=dict(normalisation='imagenet', interpolation='bilinear'),
    model=dict(backbone=dict(frozen_drop_path=True)),
)
timm = dict(late=True)
