"""Mini ViT from random weights on drawn letters: the base of the quick examples.

0.57M parameters, 73 classes, 30,000 pictures of 32 px, ten epochs.
python tools/misc/pretrain_mini.py configs/mini/pretrain/vit_letters.py
"""

_base_ = './_letters.py'

weights = 'mini_vit'  # the files that tools/misc/pretrain_mini.py writes
model = dict(
    backbone=dict(
        type='mmpretrain.VisionTransformer',
        arch=dict(embed_dims=96, num_layers=6, num_heads=6, feedforward_channels=288),
        img_size=32,
        patch_size=4,
    ),
    head=dict(in_channels=96),
)
