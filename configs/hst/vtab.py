# AFeng-x/HST, VTAB scripts: AdamW, two GPUs x 32 images. The one drop path rate is
# that of the pyramid and of the trunk.
_base_ = '../_base_/tables/augreg.py'

recipes = 'vtab'
method = dict(type='HST')
values = dict(batch_size=64)  # 2 x 32
sync_bn = 'torch'  # acts in distributed runs, and needs GPUs there
tables = dict(
    hst="""
task                  lr     weight_decay  drop_path  drop_path_rate
cifar100              0.01   0.0005        0          0
caltech101            0.001  0.0005        0.1        0.1
dtd                   0.01   0.0005        0          0
oxford_flowers102     0.001  5e-5          0          0
oxford_iiit_pet       0.01   0.0005        0          0
svhn                  0.01   5e-5          0.1        0.1
sun397                0.01   5e-5          0          0
patch_camelyon        0.005  0.0005        0.1        0.1
eurosat               0.001  0.0005        0.1        0.1
resisc45              0.005  0.0005        0          0
diabetic_retinopathy  0.001  5e-5          0.1        0.1
clevr_count           0.001  0.0005        0.1        0.1
clevr_dist            0.005  0.0005        0.1        0.1
dmlab                 0.005  0.0005        0.1        0.1
kitti                 0.005  0.05          0.1        0.1
dsprites_loc          0.005  0.0005        0.1        0.1
dsprites_ori          0.001  0.0005        0.1        0.1
smallnorb_azi         0.001  0.0005        0.1        0.1
smallnorb_ele         0.001  0.05          0.2        0.2
"""
)
