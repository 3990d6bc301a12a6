_base_ = '../recipes/ade20k.py'

# Rate and decay of w1oves/Rein for GTA to Cityscapes with DINOv2-L and Mask2Former;
# model, data and schedule are those of the other dense methods.
model = dict(backbone=dict(method=dict(type='Rein')))
optim_wrapper = dict(optimizer=dict(lr=1e-4, weight_decay=0.05))
