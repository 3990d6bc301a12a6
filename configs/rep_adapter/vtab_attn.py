# luogen1996/RepAdapter on VTAB: width 8, two groups, dropout 0.1.
recipes = 'vtab'
method = dict(type='RepAdapter', style='attn', hidden_dims=8, groups=2, drop_rate=0.1)
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
    rep_adapter="""
task                  scale
cifar100              0.1
caltech101            10
dtd                   0.1
oxford_flowers102     0.5
oxford_iiit_pet       0.5
svhn                  10
sun397                0.1
patch_camelyon        0.5
eurosat               5
resisc45              0.1
diabetic_retinopathy  0.5
clevr_count           1
clevr_dist            0.1
dmlab                 5
kitti                 1
dsprites_loc          10
dsprites_ori          5
smallnorb_azi         10
smallnorb_ele         1
"""
)
