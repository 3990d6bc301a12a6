"""Drawn clips of moving letters: data and schedule of the mini video backbones."""

custom_imports = dict(imports=['mmpetl'], allow_failed_imports=False)
default_scope = 'mmaction'
upstream = 'moving_letters'

model = dict(
    type='mmaction.Recognizer3D',
    data_preprocessor=dict(
        type='mmaction.ActionDataPreprocessor',
        mean=[127.5] * 3,
        std=[127.5] * 3,
        format_shape='NCTHW',
    ),
    cls_head=dict(num_classes=24, average_clips='prob'),
)

_pipeline = [
    dict(type='mmaction.DecordInit'),
    dict(type='mmaction.SampleFrames', clip_len=8, frame_interval=2, num_clips=1),
    dict(type='mmaction.DecordDecode'),
    dict(type='mmaction.Resize', scale=(32, 32), keep_ratio=False),
    dict(type='mmaction.FormatShape', input_format='NCTHW'),
    dict(type='mmaction.PackActionInputs'),
]
train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='mmaction.VideoDataset',
        ann_file='{{$MMPETL_DATA:data}}/moving_letters/train_list_videos.txt',
        data_prefix=dict(video='{{$MMPETL_DATA:data}}/moving_letters/videos_train'),
        pipeline=_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=48,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmaction.VideoDataset',
        ann_file='{{$MMPETL_DATA:data}}/moving_letters/val_list_videos.txt',
        data_prefix=dict(video='{{$MMPETL_DATA:data}}/moving_letters/videos_val'),
        pipeline=_pipeline,
        test_mode=True,
    ),
)
val_evaluator = dict(type='mmaction.AccMetric')

optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=200),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-6,
        begin=0,
        end=6,
        T_max=6,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(by_epoch=True, max_epochs=6, val_interval=1)
val_cfg = dict()
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=75),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1),
)
randomness = dict(seed=0, deterministic=True)
