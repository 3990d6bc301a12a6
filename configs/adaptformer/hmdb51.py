_base_ = '../recipes/hmdb51.py'

# Width 64, scale 0.1, no dropout: ShoufaChen/AdaptFormer, video.
model = dict(
    backbone=dict(
        method=dict(type='AdaptFormer', hidden_dims=64, scale=0.1, drop_rate=0.0)
    ),
)
