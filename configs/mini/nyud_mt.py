"""Drawn scenes with labels and depth in the layout of NYU Depth v2, mini Swin, 128 px.

PolyhistorLite needs model.backbone.method.rank=6 here, MTLoRA less than 24, since the
first stage is narrow.
"""

_base_ = '../recipes/nyud_mt.py'

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
    heads=dict(
        segmentation=dict(in_channels=[24, 48, 96, 192], channels=64),
        depth=dict(in_channels=[24, 48, 96, 192], channels=64),
    ),
)
_load = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow'),
    dict(type='LoadAnnotations'),
    dict(type='LoadDepthAnnotation', depth_rescale_factor=1e-3),
]
train_pipeline = [
    *_load,
    dict(type='RandomCrop', crop_size=(128, 128)),
    dict(type='PackSegInputs'),
]
test_pipeline = [*_load, dict(type='PackSegInputs')]
del _load
batch = 8
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    drop_last=False,
    dataset=dict(pipeline=train_pipeline),
)
val_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline)
)
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=12, val_interval=12)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, end=1, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        T_max=11,
        eta_min=1e-5,
        begin=1,
        end=12,
        convert_to_iter_based=True,
    ),
]
default_hooks = dict(checkpoint=dict(interval=12))
