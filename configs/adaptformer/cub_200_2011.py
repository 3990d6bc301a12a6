_base_ = '../recipes/cub_200_2011.py'

# Width 8: V-PETL Bench, FGVC scripts.
model = dict(backbone=dict(method=dict(type='AdaptFormer', hidden_dims=8)))
