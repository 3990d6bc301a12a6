"""Mini Swin on letters in clutter: the base of the quick dense examples.

0.84M parameters, four stages with strides 4, 8, 16 and 32 as the full-size Swins,
73 classes, 30,000 pictures of 64 px.
python tools/misc/pretrain_mini.py configs/mini/pretrain/swin_letters.py
"""

_base_ = './_letters.py'

weights = 'mini_swin'  # the files that tools/misc/pretrain_mini.py writes
upstream = 'letters_in_clutter'
model = dict(
    backbone=dict(
        type='mmpretrain.SwinTransformer',
        arch=dict(embed_dims=24, depths=[2, 2, 2, 1], num_heads=[1, 2, 4, 8]),
        img_size=64,
        patch_size=4,
        window_size=4,
        pad_small_map=True,  # the last map, 2 x 2, is smaller than a window
        drop_path_rate=0.0,
    ),
    neck=dict(type='mmpretrain.GlobalAveragePooling'),
    head=dict(in_channels=192),
)
train_dataloader = dict(
    dataset=dict(data_root='{{$MMPETL_DATA:data}}/letters_in_clutter')
)
val_dataloader = dict(
    dataset=dict(data_root='{{$MMPETL_DATA:data}}/letters_in_clutter')
)
