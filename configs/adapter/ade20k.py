_base_ = '../recipes/ade20k.py'

# Two per block, width 64, dropout 0.1: Leiyi-Hu/mona, swin_transformer_adapter.py.
model = dict(
    backbone=dict(
        method=dict(type='Adapter', style='houlsby', hidden_dims=64, drop_rate=0.1)
    )
)
