_base_ = '../recipes/ade20k.py'

# 64, scale 0.1, dropout 0.1, GELU: Leiyi-Hu/mona, swin_transformer_adaptformer.py.
model = dict(
    backbone=dict(
        method=dict(
            type='AdaptFormer',
            hidden_dims=64,
            scale=0.1,
            drop_rate=0.1,
            activation='gelu',
        )
    )
)
