_base_ = '../recipes/coco.py'

model = dict(backbone=dict(method=dict(type='Full')))
