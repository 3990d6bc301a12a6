_base_ = '../recipes/cub_200_2011.py'

# Width 12 (reduction 64) gives the published 0.41M, head included.
model = dict(
    backbone=dict(method=dict(type='Adapter', style='pfeiffer', hidden_dims=12))
)
