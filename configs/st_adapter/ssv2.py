_base_ = '../recipes/ssv2.py'

# 24 x 384, as linziyi96/st-adapter for this set, with its optimizer: AdamW, 1e-3 per
# 256 clips, decay 0.01. Trunk and schedule are those of the recipe.
model = dict(
    backbone=dict(method=dict(type='STAdapter', style='both', hidden_dims=384)),
)
optim_wrapper = dict(
    # 4e-3 belongs to the 1,024 clips of auto_scale_lr.
    optimizer=dict(_delete_=True, type='AdamW', lr=4e-3, weight_decay=0.01),
)
