# JieShibo/PETL-ViT, convpass/vtab: the same rate for all tasks. The stochastic depth of
# the branches is that of its trunk.
recipes = 'vtab'
method = dict(type='Convpass', hidden_dims=8, drop_path_rate=0.1)
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
    convpass="""
task                  scale  conv_init
cifar100              0.1    identity
caltech101            1      identity
dtd                   0.01   xavier
oxford_flowers102     0.1    xavier
oxford_iiit_pet       1      xavier
svhn                  100    xavier
sun397                0.1    identity
patch_camelyon        10     identity
eurosat               10     identity
resisc45              10     identity
diabetic_retinopathy  1      identity
clevr_count           1      identity
clevr_dist            0.1    xavier
dmlab                 10     identity
kitti                 10     xavier
dsprites_loc          100    xavier
dsprites_ori          0.1    xavier
smallnorb_azi         100    xavier
smallnorb_ele         1      xavier
"""
)
