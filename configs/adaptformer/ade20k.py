_base_ = '../recipes/ade20k.py'

# Width 64, scale 0.1, dropout 0.1: Leiyi-Hu/mona, swin_transformer_adaptformer.py.
model = dict(
    backbone=dict(
        method=dict(type='AdaptFormer', hidden_dims=64, scale=0.1, drop_rate=0.1)
    )
)
