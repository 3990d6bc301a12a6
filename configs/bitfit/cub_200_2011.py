_base_ = '../recipes/cub_200_2011.py'

model = dict(backbone=dict(method=dict(type='BitFit')))
