"""Drawn emblems in the layout of CUB-200-2011, mini ViT at 32 px."""

_base_ = '../recipes/fgvc/cub_200_2011.py'

preprocessing = dict(augmentation=None)  # the pipelines below
model = dict(
    backbone=dict(
        backbone=dict(
            _delete_=True,
            type='mmpretrain.VisionTransformer',
            arch=dict(
                embed_dims=96, num_layers=6, num_heads=6, feedforward_channels=288
            ),
            img_size=32,
            patch_size=4,
            out_type='cls_token',
        ),
        checkpoint='{{ fileDirname }}/../../demo/weights/mini_vit.safetensors',
    ),
    head=dict(in_channels=96),
)
_load = dict(type='LoadImageFromFile', imdecode_backend='pillow')
_resize = dict(type='ResizeEdge', scale=36, edge='short', backend='pillow')
train_pipeline = [
    _load,
    _resize,
    dict(type='RandomCrop', crop_size=32),
    dict(type='PackInputs'),
]
test_pipeline = [
    _load,
    _resize,
    dict(type='CenterCrop', crop_size=32),
    dict(type='PackInputs'),
]
del _load, _resize
train_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(pipeline=train_pipeline)
)
val_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline)
)
test_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline)
)
train_cfg = dict(max_epochs=20)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, end=2, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        T_max=18,
        eta_min=1e-5,
        begin=2,
        end=20,
        convert_to_iter_based=True,
    ),
]
