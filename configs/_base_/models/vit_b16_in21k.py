# ViT-B/16 of the original ImageNet-21k release, class token, linear head.
default_scope = 'mmpretrain'
visualizer = dict(
    type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')]
)

model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        to_rgb=True,  # mean and std follow from `preprocessing`
    ),
    backbone=dict(
        type='mmpetl.PETLBackbone',
        backbone=dict(
            type='mmpretrain.VisionTransformer',
            arch='b',
            img_size=224,
            patch_size=16,
            out_type='cls_token',
            final_norm=True,
            drop_path_rate=0.0,
        ),
        checkpoint='{{$MMPETL_WEIGHTS:checkpoints}}/ViT-B_16.npz',
        method=dict(type='LinearProbe'),
        frozen_drop_path=False,
    ),
    head=dict(
        type='LinearClsHead',
        in_channels=768,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
    ),
)
