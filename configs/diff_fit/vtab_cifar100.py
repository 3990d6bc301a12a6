_base_ = '../recipes/vtab_cifar100.py'

# Rate 1e-3: OSU-MLB/ViT_PEFT_Vision, whose grid is 1e-3 and 1e-2. No decay, since it
# would pull scales and norms to zero.
model = dict(backbone=dict(method=dict(type='DiffFit')))
optim_wrapper = dict(optimizer=dict(lr=1e-3, weight_decay=0.0))
