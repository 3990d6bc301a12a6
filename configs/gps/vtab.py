# FightingFighting/GPS, VTAB scripts: Adam without decay.
_base_ = ['../_base_/tables/augreg.py', '../_base_/tables/gps_views.py']

recipes = 'vtab'
method = dict(type='GPS')
values = dict(optimizer='Adam', weight_decay=0)
tables = dict(
    gps="""
task                  lr      drop_path  batch_size  num_weights
cifar100              0.01    0          32          1
caltech101            0.002   0          16          1
dtd                   0.002   0          16          1
oxford_flowers102     0.002   0          16          1
oxford_iiit_pet       0.003   0          32          1
svhn                  0.005   0          32          1
sun397                0.0025  0          16          1
patch_camelyon        0.004   0          32          2
eurosat               0.002   0          16          1
resisc45              0.0015  0.1        16          1
diabetic_retinopathy  0.002   0.2        32          1
clevr_count           0.0003  0.1        16          1
clevr_dist            0.002   0.1        16          1
dmlab                 0.0015  0.1        16          1
kitti                 0.001   0          16          1
dsprites_loc          0.007   0          32          1
dsprites_ori          0.0005  0.2        16          1
smallnorb_azi         0.003   0.1        32          1
smallnorb_ele         0.0003  0.2        32          1
"""
)
