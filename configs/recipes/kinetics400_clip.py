"""Kinetics-400, CLIP's ViT-B/16 on 8 frames at stride 16: linear probing as it stands.

Ours, for methods that make a video model of one for images. Frames, stride, optimizer
and length are ST-Adapter's for this set (linziyi96/st-adapter): AdamW with 1e-3 per 256
clips, decay 0.01, 12 epochs with 2 of warm-up, dropout 0.5 in front of the head. Crops
and views are those of the other video recipes.
"""

_base_ = [
    '../_base_/models/clip_vit_b16_frames.py',
    '../_base_/datasets/kinetics400.py',
    '../_base_/schedules/sgd_90e.py',
    '../_base_/default_runtime.py',
]

dataset = 'kinetics400'
preprocessing = dict(normalisation='clip')
for _loader in 'train_dataloader', 'val_dataloader', 'test_dataloader':
    _base_[_loader].dataset.pipeline[1].frame_interval = 16
del _loader
train_cfg = dict(max_epochs=12, val_interval=2)
optim_wrapper = dict(
    # 4e-3 belongs to the 1,024 clips of auto_scale_lr.
    optimizer=dict(_delete_=True, type='AdamW', lr=4e-3, weight_decay=0.01),
)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-6,
        begin=0,
        end=2,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        T_max=10,
        eta_min=0.0,
        begin=2,
        end=12,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
