_base_ = '../recipes/coco.py'

# With the relative-position tables: Leiyi-Hu/mona, swin_transformer_bitfit.py.
model = dict(backbone=dict(method=dict(type='BitFit', include_rel_pos_bias=True)))
