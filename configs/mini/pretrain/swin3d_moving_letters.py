"""Mini Video Swin on moving letters, starting from the mini Swin, inflated.

0.85M parameters, 24 motions, 7,200 clips of 16 frames, seen as 8 frames
of 32 px.
python tools/misc/pretrain_mini.py configs/mini/pretrain/swin3d_moving_letters.py
"""

_base_ = './_moving_letters.py'

weights = 'mini_video_swin'  # the files that tools/misc/pretrain_mini.py writes
inflate = 'mini_swin'
model = dict(
    backbone=dict(
        type='mmaction.SwinTransformer3D',
        arch=dict(embed_dims=24, depths=[2, 2, 2, 1], num_heads=[1, 2, 4, 8]),
        pretrained2d=False,
        patch_size=(2, 4, 4),
        window_size=(4, 4, 4),
        drop_path_rate=0.0,
    ),
    cls_head=dict(type='mmaction.I3DHead', in_channels=192, spatial_type='avg'),
)
