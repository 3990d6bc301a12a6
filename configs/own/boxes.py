"""A detector of a person's own things; tools/train_own.py fills in what is theirs.

RetinaNet on maps of strides from about 8 on. Trunk, neck, strides, statistics,
pipelines, classes and how long to train follow from the model and the pictures
(mmpetl/own). One run trains on all pictures but those of the test, which it reads once.
"""

_base_ = [
    '../_base_/models/retinanet_swin_l.py',
    '../_base_/schedules/adamw_100e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        backbone=dict(
            _delete_=True, type='mmpetl.TimmMaps', model_name='vit_base_patch16_224'
        ),
        checkpoint=None,
        frozen_drop_path=False,
    ),
    # Half the width and depth of the head: things are few, and so are pictures.
    bbox_head=dict(num_classes=1, in_channels=128, feat_channels=128, stacked_convs=2),
)
_data = dict(
    type='CocoDataset',
    data_prefix=dict(img=''),
    metainfo=dict(classes=('thing',)),
    pipeline=[],
)
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        **_data,
        ann_file='{{$MMPETL_DATA:data}}/own/train.json',
        # A picture without things says what no thing looks like.
        filter_cfg=dict(filter_empty_gt=False),
    ),
)
val_dataloader = None
test_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **_data, ann_file='{{$MMPETL_DATA:data}}/own/test.json', test_mode=True
    ),
)
val_evaluator = None
test_evaluator = dict(
    type='CocoMetric',
    ann_file='{{$MMPETL_DATA:data}}/own/test.json',
    metric='bbox',
)
val_cfg = None
test_cfg = dict()
del _data
