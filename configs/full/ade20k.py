_base_ = '../recipes/ade20k.py'

model = dict(backbone=dict(method=dict(type='Full')))
