# JieShibo/PETL-ViT, FacT on VTAB: dropout 0.1, the same rate for all tasks.
recipes = 'vtab'
method = dict(type='FacTTK', drop_rate=0.1)
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
    fact_tk="""
task                  rank  scale
cifar100              32    0.1
caltech101            32    10
dtd                   16    0.01
oxford_flowers102     32    1
oxford_iiit_pet       16    10
svhn                  32    100
sun397                16    1
patch_camelyon        32    10
eurosat               32    100
resisc45              32    10
diabetic_retinopathy  16    1
clevr_count           32    10
clevr_dist            16    10
dmlab                 32    10
kitti                 32    10
dsprites_loc          32    100
dsprites_ori          32    1
smallnorb_azi         32    100
smallnorb_ele         16    10
"""
)
