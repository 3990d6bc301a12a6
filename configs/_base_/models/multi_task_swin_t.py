# Swin-T of ImageNet-1k with two 1 x 1 convolutions on all stages for each task.
default_scope = 'mmseg'

model = dict(
    type='mmpetl.MultiTaskModel',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(448, 448),
    ),
    backbone=dict(
        type='mmpetl.PETLBackbone',
        backbone=dict(
            type='mmpretrain.SwinTransformer',
            arch='tiny',
            img_size=224,
            window_size=7,
            out_indices=(0, 1, 2, 3),
            pad_small_map=True,
            drop_path_rate=0.2,
        ),
        checkpoint='{{$MMPETL_WEIGHTS:checkpoints}}/swin_tiny_patch4_window7_224.pth',
        method=dict(type='LinearProbe'),
        frozen_drop_path=True,
    ),
    heads=dict(
        segmentation=dict(
            type='mmpetl.SegmentationHead',
            in_channels=[96, 192, 384, 768],
            channels=256,
            num_classes=40,
        ),
        depth=dict(
            type='mmpetl.DepthHead', in_channels=[96, 192, 384, 768], channels=256
        ),
    ),
)
