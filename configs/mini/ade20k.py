"""Drawn scenes in the layout of ADE20K, mini Swin and a narrow UPerNet, 128 px."""

_base_ = '../recipes/ade20k.py'

preprocessing = dict(normalisation='half')
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(
        backbone=dict(
            _delete_=True,
            type='mmpretrain.SwinTransformer',
            arch=dict(embed_dims=24, depths=[2, 2, 2, 1], num_heads=[1, 2, 4, 8]),
            img_size=64,
            patch_size=4,
            window_size=4,
            out_indices=(0, 1, 2, 3),
            pad_small_map=True,
            drop_path_rate=0.0,
        ),
        checkpoint='{{ fileDirname }}/../../demo/weights/mini_swin.safetensors',
    ),
    decode_head=dict(
        in_channels=[24, 48, 96, 192], channels=48, norm_cfg=dict(type='BN')
    ),
    auxiliary_head=dict(in_channels=96, channels=24, norm_cfg=dict(type='BN')),
)
_load = dict(type='LoadImageFromFile', imdecode_backend='pillow')
train_pipeline = [
    _load,
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(
        type='RandomResize', scale=(512, 128), ratio_range=(0.75, 1.5), keep_ratio=True
    ),
    dict(type='RandomCrop', crop_size=(128, 128), cat_max_ratio=0.75),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    _load,
    dict(type='Resize', scale=(512, 128), keep_ratio=True),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]
del _load
batch = 8
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(pipeline=train_pipeline),
)
val_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline)
)
test_dataloader = val_dataloader
train_cfg = dict(max_iters=600, val_interval=300)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, end=30),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=30, end=600),
]
default_hooks = dict(checkpoint=dict(interval=300))
