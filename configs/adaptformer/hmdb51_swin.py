_base_ = '../recipes/hmdb51_swin.py'

# Width 64: the published 1.56M. Reads the residual stream, as AdaptFormer's own code.
model = dict(
    backbone=dict(
        method=dict(type='AdaptFormer', hidden_dims=64, scale=0.1, drop_rate=0.0)
    ),
)
