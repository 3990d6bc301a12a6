_base_ = '../recipes/ssv2_swin.py'

# Drop path 0.4 of the recipe is in force here: bruceyo/V-PETL, Video Swin-B.
model = dict(backbone=dict(method=dict(type='Full')))
