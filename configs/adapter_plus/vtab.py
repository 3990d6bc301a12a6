# visinf/adapter_plus on VTAB, experiment adapter_plus_dim1-32: one recipe for all
# tasks, the width chosen for each.
recipes = 'vtab'
method = dict(type='AdapterPlus', drop_path_rate=0.1)
values = dict(
    lr=1e-3,
    weight_decay=1e-4,
    batch_size=64,
    epochs=100,
    warmup_epochs=10,
    warmup_lr=1e-5,
    min_lr=1e-6,
    drop_path=0.1,
)
train_dataloader = dict(drop_last=True)
# Inputs as timm's model wants them, resized by TensorFlow; a rate that is no timm's.
published = dict(preprocessing=dict(normalisation='half', interpolation='bilinear'))
timm = None
tables = dict(
    adapter_plus="""
task                  hidden_dims
cifar100              1
caltech101            4
dtd                   2
oxford_flowers102     1
oxford_iiit_pet       8
svhn                  16
sun397                1
patch_camelyon        16
eurosat               2
resisc45              32
diabetic_retinopathy  32
clevr_count           4
clevr_dist            8
dmlab                 8
kitti                 8
dsprites_loc          32
dsprites_ori          4
smallnorb_azi         32
smallnorb_ele         8
"""
)
