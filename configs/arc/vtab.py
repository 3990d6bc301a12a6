# DavidYanAnDe/ARC on VTAB: the defaults of its script, the same for all tasks.
recipes = 'vtab'
method = dict(type='ARC', rank=50, drop_rate=0.1)
values = dict(
    lr=0.01,
    weight_decay=0.0,
    batch_size=32,
    epochs=100,
    warmup_epochs=10,
    warmup_lr=1e-8,
    min_lr=1e-8,
    drop_path=0.0,
)
optim_wrapper = dict(clip_grad=dict(max_norm=1.0))
published = dict(preprocessing=dict(interpolation='bicubic'))
timm = None  # warm-up and cosine by step
tables = dict(
    arc="""
task
cifar100
caltech101
dtd
oxford_flowers102
oxford_iiit_pet
svhn
sun397
patch_camelyon
eurosat
resisc45
diabetic_retinopathy
clevr_count
clevr_dist
dmlab
kitti
dsprites_loc
dsprites_ori
smallnorb_azi
smallnorb_ele
"""
)
