"""Drawn clips in the layout of HMDB51, mini Video Swin at 32 px, 12 classes."""

_base_ = '../recipes/hmdb51_swin.py'

preprocessing = dict(normalisation='half')
model = dict(
    backbone=dict(
        backbone=dict(
            _delete_=True,
            type='mmaction.SwinTransformer3D',
            arch=dict(embed_dims=24, depths=[2, 2, 2, 1], num_heads=[1, 2, 4, 8]),
            pretrained=None,
            pretrained2d=False,
            patch_size=(2, 4, 4),
            window_size=(4, 4, 4),
            mlp_ratio=4.0,
            drop_path_rate=0.0,
            patch_norm=True,
        ),
        checkpoint='{{ fileDirname }}/../../demo/weights/mini_video_swin.safetensors',
    ),
    cls_head=dict(num_classes=12, in_channels=192),
)
_clip = dict(
    type='SampleFrames',
    clip_len=8,
    frame_interval=4,
    num_clips=1,
    out_of_bound_opt='repeat_last',
)
_pack = [
    dict(type='FormatShape', input_format='NCTHW'),
    dict(type='PackActionInputs'),
]
train_pipeline = [
    dict(type='DecordInit'),
    _clip,
    dict(type='DecordDecode'),
    dict(type='Resize', scale=(32, 32), keep_ratio=False),
    *_pack,
]
val_pipeline = [
    dict(type='DecordInit'),
    dict(_clip, test_mode=True),
    dict(type='DecordDecode'),
    dict(type='Resize', scale=(-1, 32)),
    dict(type='CenterCrop', crop_size=32),
    *_pack,
]
test_pipeline = [
    dict(type='DecordInit'),
    dict(_clip, num_clips=2, test_mode=True),
    dict(type='DecordDecode'),
    dict(type='Resize', scale=(-1, 32)),
    dict(type='ThreeCrop', crop_size=32),
    *_pack,
]
del _clip, _pack
batch = 32
train_dataloader = dict(
    batch_size=32,
    drop_last=False,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(pipeline=train_pipeline),
)
val_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(pipeline=val_pipeline)
)
test_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(pipeline=test_pipeline),
)
train_cfg = dict(max_epochs=20)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-3, weight_decay=1e-4)
)
auto_scale_lr = dict(enable=False)
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
