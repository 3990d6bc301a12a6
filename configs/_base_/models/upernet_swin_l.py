# UPerNet with an FCN auxiliary head on stage 3, Swin-L of ImageNet-22k.
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
    ),
    backbone=dict(
        type='mmpetl.PETLBackbone',
        backbone=dict(
            # mmpretrain's class under every task: one site map, one set of keys.
            type='mmpretrain.SwinTransformer',
            arch='large',
            img_size=224,
            window_size=7,
            out_indices=(0, 1, 2, 3),
            pad_small_map=True,
            drop_path_rate=0.3,
        ),
        checkpoint=(
            '{{$MMPETL_WEIGHTS:checkpoints}}/swin_large_patch4_window7_224_22k.pth'
        ),
        method=dict(type='LinearProbe'),
        frozen_drop_path=True,
    ),
    decode_head=dict(
        type='UPerHead',
        in_channels=[192, 384, 768, 1536],
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=512,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=dict(
        type='FCNHead',
        in_channels=768,
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
