# VOC 2012 segmentation: 1,464 training and 1,449 validation images, 21 classes with
# background. With the 10,582 images of SBD's masks (VOC2012/SegmentationClassAug):
# train_dataloader.dataset.ann_file and data_prefix.seg_map_path.
_load = dict(type='LoadImageFromFile', imdecode_backend='pillow')
train_pipeline = [
    _load,
    dict(type='LoadAnnotations'),
    dict(
        type='RandomResize', scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True
    ),
    dict(type='RandomCrop', crop_size=(512, 512), cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
# Single scale, whole image.
test_pipeline = [
    _load,
    dict(type='Resize', scale=(2048, 512), keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
_prefix = dict(img_path='JPEGImages', seg_map_path='SegmentationClass')

train_dataloader = dict(
    batch_size=2,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='PascalVOCDataset',
        data_root='{{$MMPETL_DATA:data}}/VOCdevkit/VOC2012',
        ann_file='ImageSets/Segmentation/train.txt',
        data_prefix=_prefix,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='PascalVOCDataset',
        data_root='{{$MMPETL_DATA:data}}/VOCdevkit/VOC2012',
        ann_file='ImageSets/Segmentation/val.txt',
        data_prefix=_prefix,
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
val_cfg = dict()
test_cfg = dict()
del _load, _prefix
