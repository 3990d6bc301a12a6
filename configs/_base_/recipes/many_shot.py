# Many and few images per class, as in OSU-MLB/ViT_PEFT_Vision: AdamW 1e-3, decay 1e-4,
# batch 64, the last partial batch dropped, floor 1e-5, no drop path; 40 epochs with 4
# of warm-up where all images are used, 100 with 10 where there are five per class.
# Settings are chosen on train and val, then one run trains on both.
_base_ = [
    '../models/vit_b16_in21k.py',
    '../datasets/study.py',
    '../schedules/adamw_100e.py',
    '../default_runtime.py',
]

preprocessing = dict(
    normalisation='half', augmentation='study', interpolation='bicubic', size=224
)
optim_wrapper = dict(paramwise_cfg=dict(decay_all=True))  # one group there
published = dict(model=dict(backbone=dict(frozen_drop_path=True)))
timm = dict(late=True)
