"""Handwritten digits in the layout of a VTAB-1k task, mini ViT: seconds on a CPU.

1,000 labelled images for training (800 and 200), 797 for the test, 32 x 32.
"""

_base_ = '../recipes/vtab/cifar100.py'

dataset = None  # not of the catalogue
preprocessing = dict(size=32)
model = dict(
    backbone=dict(
        backbone=dict(
            _delete_=True,
            type='mmpretrain.VisionTransformer',
            arch=dict(
                embed_dims=96, num_layers=6, num_heads=6, feedforward_channels=288
            ),
            img_size=32,
            patch_size=4,
            out_type='cls_token',
        ),
        checkpoint='{{ fileDirname }}/../../demo/weights/mini_vit.safetensors',
    ),
    head=dict(num_classes=10, in_channels=96),
)
train_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(task='digits', num_classes=10),
)
test_dataloader = train_dataloader
train_cfg = dict(max_epochs=40)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, end=4, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        T_max=36,
        eta_min=1e-5,
        begin=4,
        end=40,
        convert_to_iter_based=True,
    ),
]
