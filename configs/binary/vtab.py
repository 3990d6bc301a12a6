# JieShibo/PETL-ViT, binary_adapter: 32 channels in one bit, one rate for all tasks,
# on pixels in [0, 1] that are not normalised.
recipes = 'vtab'
method = dict(type='BiLoRA', rank=32, bits=1, drop_rate=0.1)
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
published = dict(preprocessing=dict(normalisation='none', interpolation='bicubic'))
tables = dict(
    binary="""
task                  scale
cifar100              0.1
caltech101            10
dtd                   0.01
oxford_flowers102     1
oxford_iiit_pet       0.1
svhn                  10
sun397                0.1
patch_camelyon        10
eurosat               10
resisc45              10
diabetic_retinopathy  10
clevr_count           1
clevr_dist            0.1
dmlab                 10
kitti                 10
dsprites_loc          1
dsprites_ori          0.1
smallnorb_azi         10
smallnorb_ele         1
"""
)
