"""A segmentor of a person's own pictures; tools/train_own.py fills in what is theirs.

The head of SegFormer (Xie et al., 2021, section 3.2): a projection of each map, laid
over one another and mixed pixel by pixel. Trunk, neck, statistics, pipelines, classes
and how long to train follow from the model and the pictures (mmpetl/own). One run
trains on all pictures but those of the test, which it reads once.
"""

_base_ = ['../_base_/schedules/adamw_100e.py', '../_base_/default_runtime.py']

default_scope = 'mmseg'
visualizer = dict(
    type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')]
)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(512, 512),
        test_cfg=dict(size=(512, 512)),
    ),
    backbone=dict(
        type='mmpetl.PETLBackbone',
        backbone=dict(type='mmpetl.TimmMaps', model_name='vit_base_patch16_224'),
        checkpoint=None,
        method=dict(type='LinearProbe'),
    ),
    neck=dict(type='mmpetl.SimplePyramid', in_channels=768, scales=[4, 2, 1, 0.5]),
    decode_head=dict(
        type='SegformerHead',
        in_channels=[192, 384, 768, 768],
        in_index=[0, 1, 2, 3],
        channels=256,
        dropout_ratio=0.1,
        num_classes=2,
        # Of few pictures in a step, whose statistics a norm over a batch would take.
        norm_cfg=dict(type='GN', num_groups=32),
        align_corners=False,
        ignore_index=255,
        loss_decode=dict(
            type='CrossEntropyLoss',
            use_sigmoid=False,
            loss_weight=1.0,
            avg_non_ignore=True,
        ),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
_data = dict(
    type='BaseSegDataset',
    data_prefix=dict(img_path='', seg_map_path=''),
    # A line of the list is a picture's path; its mask has that path and .png behind it.
    img_suffix='',
    seg_map_suffix='.png',
    metainfo=dict(classes=('ground', 'thing'), palette=[[0, 0, 0], [255, 255, 255]]),
    reduce_zero_label=False,
    pipeline=[],
)
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(**_data, ann_file='{{$MMPETL_DATA:data}}/own/train.txt'),
)
val_dataloader = None
test_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **_data, ann_file='{{$MMPETL_DATA:data}}/own/test.txt', test_mode=True
    ),
)
val_evaluator = None
test_evaluator = dict(type='mmpetl.LabelMaps')
val_cfg = None
test_cfg = dict()
del _data
