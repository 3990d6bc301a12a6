# NUS-HPC-AI-Lab/Dynamic-Tuning, train_vtab.sh and main_vtab.py: one recipe for all
# tasks, in half precision. Its rates go by step, as MAE's do.
recipes = 'vtab'
method = dict(type='DyT', hidden_dims=16)
values = dict(
    lr=1e-3,
    weight_decay=1e-4,
    batch_size=64,
    epochs=100,
    warmup_epochs=10,
    warmup_lr=0.0,
    min_lr=1e-5,
    drop_path=0.0,
    decay_all=True,  # one group there, decay on everything
)
published = dict(preprocessing=dict(normalisation='half', interpolation='bicubic'))
timm = None
tables = dict(
    dyt="""
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
