_base_ = '../recipes/ade20k.py'

# Every LayerNorm: Leiyi-Hu/mona, swin_transformer_norm_tuning.py.
model = dict(backbone=dict(method=dict(type='LNTune')))
