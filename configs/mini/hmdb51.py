"""Drawn clips in the layout of HMDB51, mini VideoMAE ViT at 32 px, 12 classes."""

_base_ = '../recipes/hmdb51.py'

preprocessing = dict(normalisation='half')
model = dict(
    backbone=dict(
        backbone=dict(
            _delete_=True,
            type='mmaction.VisionTransformer',
            img_size=32,
            patch_size=8,
            embed_dims=96,
            depth=5,
            num_heads=6,
            mlp_ratio=3,
            qkv_bias=True,
            num_frames=8,
            tubelet_size=2,
            use_mean_pooling=True,
        ),
        checkpoint='{{ fileDirname }}/../../demo/weights/mini_video_vit.safetensors',
        head=(),  # this base was trained by labels and has its norm
    ),
    cls_head=dict(type='TimeSformerHead', num_classes=12, in_channels=96),
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
