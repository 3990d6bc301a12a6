_base_ = '../recipes/kinetics400_clip.py'

# 12 x 384, as linziyi96/st-adapter for this set; the schedule of the recipe is its own.
model = dict(
    backbone=dict(method=dict(type='STAdapter', style='ffn', hidden_dims=384)),
)
