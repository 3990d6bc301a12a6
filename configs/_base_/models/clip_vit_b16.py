# CLIP's ViT-B/16 without its text tower, class token, linear head.
_base_ = './vit_b16_in21k.py'

model = dict(
    backbone=dict(
        backbone=dict(
            pre_norm=True,
            norm_cfg=dict(type='LN', eps=1e-5),
            layer_cfgs=dict(act_cfg=dict(type='mmpretrain.QuickGELU')),
        ),
        checkpoint='{{$MMPETL_WEIGHTS:checkpoints}}/ViT-B-16.pt',
    ),
)
