"""Drawn letters: data and schedule that the mini picture backbones share."""

custom_imports = dict(imports=['mmpetl'], allow_failed_imports=False)
default_scope = 'mmpretrain'
upstream = 'letters'  # the drawn set that tools/misc/pretrain_mini.py makes first

model = dict(
    type='mmpretrain.ImageClassifier',
    data_preprocessor=dict(
        num_classes=73, mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True
    ),
    head=dict(
        type='mmpretrain.LinearClsHead',
        num_classes=73,
        loss=dict(type='mmpretrain.CrossEntropyLoss'),
        topk=(1, 5),
    ),
)

_pipeline = [
    dict(type='mmpretrain.LoadImageFromFile'),
    dict(type='mmpretrain.PackInputs'),
]
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='mmpretrain.CustomDataset',
        data_root='{{$MMPETL_DATA:data}}/letters',
        ann_file='train.txt',
        pipeline=_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=256,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmpretrain.CustomDataset',
        data_root='{{$MMPETL_DATA:data}}/letters',
        ann_file='val.txt',
        test_mode=True,
        pipeline=_pipeline,
    ),
)
val_evaluator = dict(type='mmpretrain.Accuracy', topk=(1, 5))

optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=300),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-6,
        begin=0,
        end=10,
        T_max=10,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(by_epoch=True, max_epochs=10, val_interval=1)
val_cfg = dict()
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=100),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1),
)
randomness = dict(seed=0, deterministic=True)
