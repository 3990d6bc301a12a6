# VideoMAE ViT-B, self-supervised on Kinetics-400 for 1,600 epochs, 8 frames in.
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
            type='mmaction.VisionTransformer',
            img_size=224,
            patch_size=16,
            embed_dims=768,
            depth=12,
            num_heads=12,
            mlp_ratio=4,
            qkv_bias=True,
            num_frames=8,
            tubelet_size=2,
            norm_cfg=dict(type='LN', eps=1e-6),
            use_mean_pooling=True,
            drop_path_rate=0.0,
        ),
        checkpoint='{{$MMPETL_WEIGHTS:checkpoints}}/videomae_pretrain_vit_b_1600.pth',
        method=dict(type='LinearProbe'),
        # The self-supervised file has no such norm: it trains like the head.
        head=('fc_norm',),
        frozen_drop_path=False,
    ),
    cls_head=dict(
        type='mmpetl.BatchNormHead',  # AdaptFormer's; with eps 1e-6
        in_channels=768,
        init_std=0.01,
        dropout_ratio=0.0,
        average_clips='score',  # mean of the logits over views
    ),
)
