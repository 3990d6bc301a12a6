"""Drawn clips in the layout of HMDB51 on the mini ViT of pictures, four frames of each.

For methods that make a video model of one for images; the others see four pictures and
the mean of what they say.
"""

_base_ = 'hmdb51.py'

model = dict(
    backbone=dict(
        backbone=dict(
            _delete_=True,
            type='mmpetl.FrameBackbone',
            num_frames=4,
            backbone=dict(
                type='mmpretrain.VisionTransformer',
                arch=dict(
                    embed_dims=96, num_layers=6, num_heads=6, feedforward_channels=288
                ),
                img_size=32,
                patch_size=4,
                out_type='cls_token',
            ),
        ),
        checkpoint='{{ fileDirname }}/../../demo/weights/mini_vit.safetensors',
    ),
)
for _loader in 'train_dataloader', 'val_dataloader', 'test_dataloader':
    _base_[_loader].dataset.pipeline[1].update(clip_len=4, frame_interval=8)
del _loader
