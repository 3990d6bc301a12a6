# NYU Depth v2: 795 training and 654 validation images, 40 classes and depth.
_load = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow'),
    dict(type='LoadAnnotations'),
    dict(type='LoadDepthAnnotation', depth_rescale_factor=1e-3),  # mm to m
]
train_pipeline = [
    *_load,
    # No change of scale: it would ask for other depths.
    dict(type='RandomCrop', crop_size=(448, 448)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
# Single scale, whole image.
test_pipeline = [*_load, dict(type='PackSegInputs')]

train_dataloader = dict(
    batch_size=32,
    num_workers=4,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='mmpetl.DenseTasks',
        data_root='{{$MMPETL_DATA:data}}/nyud_mt',
        split='train',
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmpetl.DenseTasks',
        data_root='{{$MMPETL_DATA:data}}/nyud_mt',
        split='val',
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
test_dataloader = val_dataloader
val_evaluator = [
    dict(type='IoUMetric', iou_metrics=['mIoU'], prefix='segmentation'),
    dict(type='mmpetl.DepthError'),
]
test_evaluator = val_evaluator
val_cfg = dict()
test_cfg = dict()
del _load
