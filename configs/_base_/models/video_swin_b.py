# Video Swin-B, supervised on ImageNet-22k, then Kinetics-400.
default_scope = 'mmaction'
# Public code trains with the whole model in training mode.
published = dict(model=dict(backbone=dict(frozen_drop_path=True)))
visualizer = dict(type='ActionVisualizer', vis_backends=[dict(type='LocalVisBackend')])

model = dict(
    type='Recognizer3D',
    data_preprocessor=dict(
        type='ActionDataPreprocessor',
        format_shape='NCTHW',
    ),
    backbone=dict(
        type='mmpetl.PETLBackbone',
        backbone=dict(
            type='mmaction.SwinTransformer3D',
            arch='base',
            pretrained=None,
            pretrained2d=False,  # True would inflate a 2-D file over the loaded base
            patch_size=(2, 4, 4),
            window_size=(8, 7, 7),
            mlp_ratio=4.0,
            qkv_bias=True,
            patch_norm=True,
            drop_path_rate=0.4,
        ),
        checkpoint=(
            '{{$MMPETL_WEIGHTS:checkpoints}}/'
            'swin_base_patch244_window877_kinetics400_22k.pth'
        ),
        method=dict(type='LinearProbe'),
        frozen_drop_path=False,
    ),
    cls_head=dict(
        type='I3DHead',
        in_channels=1024,
        spatial_type='avg',
        dropout_ratio=0.0,
        init_std=0.01,
        average_clips='score',  # mean of the logits over views
    ),
)
