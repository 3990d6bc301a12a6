# CLIP's ViT-B/16 without its text tower over 8 frames, mean of their class tokens.
default_scope = 'mmaction'
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
            type='mmpetl.FrameBackbone',
            num_frames=8,
            backbone=dict(
                type='mmpretrain.VisionTransformer',
                arch='b',
                img_size=224,
                patch_size=16,
                out_type='cls_token',
                final_norm=True,
                drop_path_rate=0.0,
                pre_norm=True,
                norm_cfg=dict(type='LN', eps=1e-5),
                layer_cfgs=dict(act_cfg=dict(type='mmpretrain.QuickGELU')),
            ),
        ),
        checkpoint='{{$MMPETL_WEIGHTS:checkpoints}}/ViT-B-16.pt',
        method=dict(type='LinearProbe'),
        frozen_drop_path=False,
    ),
    cls_head=dict(
        type='TimeSformerHead',
        in_channels=768,
        init_std=0.01,
        dropout_ratio=0.5,
        average_clips='score',  # mean of the logits over views
    ),
)
