# CUB-200-2011, VPT's splits: train 5,394, val 600 (chooses), test 5,794 (read once).
_load = dict(type='LoadImageFromFile', imdecode_backend='pillow')
_resize = dict(
    type='ResizeEdge',
    scale=256,
    edge='short',
    backend='pillow',
    interpolation='bicubic',
)
train_pipeline = [
    _load,
    _resize,
    dict(type='RandomCrop', crop_size=224),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    _load,
    _resize,
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]

train_dataloader = dict(
    batch_size=64,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='mmpetl.FGVC',
        name='cub_200_2011',
        split='train',
        data_root='{{$MMPETL_DATA:data}}/fgvc',
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmpetl.FGVC',
        name='cub_200_2011',
        split='val',
        data_root='{{$MMPETL_DATA:data}}/fgvc',
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
test_dataloader = dict(
    batch_size=128,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmpetl.FGVC',
        name='cub_200_2011',
        split='test',
        data_root='{{$MMPETL_DATA:data}}/fgvc',
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator
val_cfg = dict()
test_cfg = dict()
del _load
del _resize
