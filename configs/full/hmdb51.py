_base_ = '../recipes/hmdb51.py'

model = dict(backbone=dict(method=dict(type='Full')))
