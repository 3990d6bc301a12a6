"""Mini video ViT (VideoMAE's architecture) on moving letters, trained by labels.

0.50M parameters, 24 motions, 7,200 clips of 16 frames, seen as 8 frames of
32 px.
python tools/misc/pretrain_mini.py configs/mini/pretrain/videomae_moving_letters.py
"""

_base_ = './_moving_letters.py'

weights = 'mini_video_vit'  # the files that tools/misc/pretrain_mini.py writes
model = dict(
    backbone=dict(
        type='mmaction.VisionTransformer',
        img_size=32,
        patch_size=8,
        embed_dims=96,
        depth=5,
        num_heads=6,
        mlp_ratio=3,
        qkv_bias=True,
        num_frames=8,
        tubelet_size=2,
        use_mean_pooling=True,
    ),
    cls_head=dict(type='mmaction.TimeSformerHead', in_channels=96),
)
