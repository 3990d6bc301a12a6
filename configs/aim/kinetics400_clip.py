_base_ = '../recipes/kinetics400_clip.py'

# Rate, decay and stochastic depth of taoyang1122/adapt-image-models for this set: AdamW
# 3e-4, 0.05, 0.2 in the last block. Frames, batch and length are those of the recipe.
model = dict(backbone=dict(method=dict(type='AIM')))
optim_wrapper = dict(optimizer=dict(lr=3e-4, weight_decay=0.05))
auto_scale_lr = dict(enable=False)
