_base_ = '../recipes/ssv2.py'

model = dict(backbone=dict(method=dict(type='Full')))
