"""ImageNet, 100 images per class, CLIP's ViT-B/16: for robustness to shifted data.

Values of OSU-MLB/ViT_PEFT_Vision: AdamW 3e-5, decay 0.005, batch 256, 100 epochs with
10 of warm-up from 1e-7, floor 1e-6, no drop path, RandAugment and erasing. Its head
starts as the zero-shot classifier on CLIP's projection; this one is linear on the class
token and starts small. Shifted sets: test_dataloader.dataset.name=imagenet_sketch.
"""

_base_ = [
    '../_base_/models/clip_vit_b16.py',
    '../_base_/datasets/study.py',
    '../_base_/schedules/adamw_100e.py',
    '../_base_/default_runtime.py',
]

dataset = 'imagenet'
preprocessing = dict(
    normalisation='clip', augmentation='study_clip', interpolation='bicubic', size=224
)
train_dataloader = dict(batch_size=256, dataset=dict(split='train'))
optim_wrapper = dict(
    optimizer=dict(lr=3e-5, weight_decay=0.005),
    paramwise_cfg=dict(decay_all=True),  # one group there
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1 / 300, end=10, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        T_max=90,
        eta_min=1e-6,
        begin=10,
        end=100,
        convert_to_iter_based=True,
    ),
]
timm = dict(late=True)
