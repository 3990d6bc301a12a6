"""ADE20K, UPerNet on DINOv3 ViT-L/16 of timm: frozen trunk, neck and heads train.

Upstream's recipe of UPerNet on a plain ViT, with another trunk and stride. No published
settings of tuning methods exist for it; the leaves are ours.

The weights are timm's copy, a folder of the hub below MMPETL_WEIGHTS.
"""

_base_ = 'mmseg::vit/vit_vit-b16_mln_upernet_8xb2-160k_ade20k-512x512.py'

model = dict(
    type='mmpetl.PETLModel',
    of=_base_.model.type,
    petl=dict(type='LinearProbe'),
    base=(
        '{{$MMPETL_WEIGHTS:checkpoints}}/'
        'vit_large_patch16_dinov3.lvd1689m/model.safetensors'
    ),
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='mmpretrain.TIMMBackbone',
        model_name='vit_large_patch16_dinov3.lvd1689m',
        features_only=True,
        pretrained=False,
        out_indices=(5, 11, 17, 23),
        img_size=512,
        # Pictures in evaluation may be narrower than a crop.
        dynamic_img_size=True,
        dynamic_img_pad=True,
    ),
    neck=dict(in_channels=[1024, 1024, 1024, 1024], out_channels=1024),
    decode_head=dict(in_channels=[1024, 1024, 1024, 1024]),
    auxiliary_head=dict(in_channels=1024),
    test_cfg=dict(_delete_=True, mode='slide', crop_size=(512, 512), stride=(341, 341)),
)
runner_type = 'mmpetl.TuningRunner'
