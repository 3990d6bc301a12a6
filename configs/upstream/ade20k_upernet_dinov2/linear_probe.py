"""ADE20K, UPerNet on DINOv2 ViT-L/14 of timm: frozen trunk, neck and heads train.

Upstream's recipe of UPerNet on a plain ViT, with another trunk and stride. No published
settings of tuning methods exist for it; the leaves are ours.
"""

_base_ = 'mmseg::vit/vit_vit-b16_mln_upernet_8xb2-160k_ade20k-512x512.py'

crop_size = (518, 518)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(
        type='RandomResize', scale=(2048, 518), ratio_range=(0.5, 2.0), keep_ratio=True
    ),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
model = dict(
    type='mmpetl.PETLModel',
    of=_base_.model.type,
    petl=dict(type='LinearProbe'),
    base=(
        'https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth'
    ),
    data_preprocessor=dict(size=crop_size),
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='mmpretrain.TIMMBackbone',
        model_name='vit_large_patch14_dinov2.lvd142m',
        features_only=True,
        pretrained=False,
        out_indices=(5, 11, 17, 23),
        img_size=518,
        # Pictures in evaluation may be narrower than a crop.
        dynamic_img_size=True,
        dynamic_img_pad=True,
    ),
    neck=dict(in_channels=[1024, 1024, 1024, 1024], out_channels=1024),
    decode_head=dict(in_channels=[1024, 1024, 1024, 1024]),
    auxiliary_head=dict(in_channels=1024),
    test_cfg=dict(_delete_=True, mode='slide', crop_size=(518, 518), stride=(341, 341)),
)
runner_type = 'mmpetl.TuningRunner'
