"""Drawn scenes in the layout of COCO, mini Swin and narrow cascade heads, 128 px."""

_base_ = '../recipes/coco.py'

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
            out_indices=(0, 1, 2, 3),
            pad_small_map=True,
            drop_path_rate=0.0,
        ),
        checkpoint='{{ fileDirname }}/../../demo/weights/mini_swin.safetensors',
    ),
    neck=dict(in_channels=[24, 48, 96, 192], out_channels=48),
    rpn_head=dict(in_channels=48, feat_channels=48),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=48),
        bbox_head=[
            dict(
                type='ConvFCBBoxHead',
                num_shared_convs=1,
                num_shared_fcs=1,
                in_channels=48,
                conv_out_channels=48,
                fc_out_channels=128,
                roi_feat_size=7,
                num_classes=80,
                bbox_coder=dict(
                    type='DeltaXYWHBBoxCoder',
                    target_means=[0.0, 0.0, 0.0, 0.0],
                    target_stds=[xy, xy, wh, wh],
                ),
                reg_class_agnostic=False,
                reg_decoded_bbox=True,
                norm_cfg=dict(type='BN', requires_grad=True),
                loss_cls=dict(
                    type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0
                ),
                loss_bbox=dict(type='GIoULoss', loss_weight=10.0),
            )
            for xy, wh in ((0.1, 0.2), (0.05, 0.1), (0.033, 0.067))
        ],
        mask_roi_extractor=dict(out_channels=48),
        mask_head=dict(num_convs=2, in_channels=48, conv_out_channels=48),
    ),
    train_cfg=dict(rpn_proposal=dict(max_per_img=100)),
    test_cfg=dict(rpn=dict(max_per_img=100)),
)
_load = dict(type='LoadImageFromFile', imdecode_backend='pillow')
_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
train_pipeline = [
    _load,
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(192, 128), keep_ratio=True),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    _load,
    dict(type='Resize', scale=(192, 128), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=_keys),
]
del _load, _keys
batch = 8
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(pipeline=train_pipeline),
)
val_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline)
)
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=12, val_interval=12)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, end=50),
    dict(
        type='MultiStepLR',
        by_epoch=True,
        begin=0,
        end=12,
        milestones=[9, 11],
        gamma=0.1,
    ),
]
