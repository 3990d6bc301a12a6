# JieShibo/PETL-ViT, FacT on VTAB: dropout 0.1, the same rate for all tasks.
recipes = 'vtab'
method = dict(type='FacTTT', drop_rate=0.1)
values = dict(
    lr=1e-3,
    weight_decay=1e-4,
    batch_size=64,
    epochs=100,
    warmup_epochs=10,
    warmup_lr=1e-6,
    min_lr=1e-5,
    drop_path=0.1,
    decay_all=True,  # one group there, decay on everything
)
train_dataloader = dict(drop_last=True)
published = dict(preprocessing=dict(interpolation='bicubic'))
tables = dict(
    fact_tt="""
task                  rank  scale
cifar100              8     1
caltech101            16    10
dtd                   8     0.01
oxford_flowers102     16    1
oxford_iiit_pet       8     1
svhn                  16    100
sun397                8     1
patch_camelyon        8     10
eurosat               8     100
resisc45              8     0.1
diabetic_retinopathy  8     1
clevr_count           16    1
clevr_dist            4     10
dmlab                 16    10
kitti                 16    10
dsprites_loc          16    100
dsprites_ori          16    1
smallnorb_azi         16    100
smallnorb_ele         8     10
"""
)
