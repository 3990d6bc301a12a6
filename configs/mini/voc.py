"""Drawn scenes in the layout of VOC 07+12, mini Swin, a narrow RetinaNet, 128 px."""

_base_ = '../recipes/voc.py'

preprocessing = dict(normalisation='half')
model = dict(
    backbone=dict(
        backbone=dict(
            _delete_=True,
            type='mmpretrain.SwinTransformer',
            arch=dict(embed_dims=24, depths=[2, 2, 2, 1], num_heads=[1, 2, 4, 8]),
            img_size=64,
            patch_size=4,
            window_size=4,
            out_indices=(1, 2, 3),
            pad_small_map=True,
            drop_path_rate=0.0,
        ),
        checkpoint='{{ fileDirname }}/../../demo/weights/mini_swin.safetensors',
    ),
    neck=dict(in_channels=[48, 96, 192], out_channels=48),
    bbox_head=dict(in_channels=48, stacked_convs=2, feat_channels=48),
)
_load = dict(type='LoadImageFromFile', imdecode_backend='pillow')
_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
train_pipeline = [
    _load,
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(192, 128), keep_ratio=True),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    _load,
    dict(type='Resize', scale=(192, 128), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=_keys),
]
del _load, _keys
batch = 8
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        dataset=dict(
            datasets=[
                dict(
                    type='VOCDataset',
                    data_root='{{$MMPETL_DATA:data}}/VOCdevkit/',
                    ann_file=f'VOC{year}/ImageSets/Main/trainval.txt',
                    data_prefix=dict(sub_data_root=f'VOC{year}/'),
                    # Things here are small; the full recipe ignores what is below 32.
                    filter_cfg=dict(filter_empty_gt=True, min_size=32, bbox_min_size=8),
                    pipeline=train_pipeline,
                )
                for year in (2007, 2012)
            ],
        )
    ),
)
val_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline)
)
test_dataloader = val_dataloader
train_cfg = dict(val_interval=4)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
