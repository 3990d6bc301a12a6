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
# Half of the shared schedule: the inflated start has its shapes and learns motion soon.
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-6,
        begin=0,
        end=3,
        T_max=3,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=3)
