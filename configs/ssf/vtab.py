# dongzelian/SSF, VTAB scripts: AdamW, two GPUs x 32 images.
_base_ = '../_base_/tables/augreg.py'

recipes = 'vtab'
method = dict(type='SSF')
values = dict(batch_size=64)  # 2 x 32
tables = dict(
    ssf="""
task                  lr     weight_decay  drop_path
cifar100              0.005  5e-5          0
caltech101            0.001  0.05          0.1
dtd                   0.005  5e-5          0
oxford_flowers102     0.005  5e-5          0
oxford_iiit_pet       0.005  5e-5          0
svhn                  0.01   5e-5          0
sun397                0.005  5e-5          0
patch_camelyon        0.005  5e-5          0
eurosat               0.003  0.05          0.2
resisc45              0.002  5e-5          0.1
diabetic_retinopathy  0.005  5e-5          0.2
clevr_count           0.002  0.05          0.1
clevr_dist            0.05   0.05          0.1
dmlab                 0.005  5e-5          0.1
kitti                 0.01   5e-5          0
dsprites_loc          0.01   5e-5          0
dsprites_ori          0.005  5e-5          0.2
smallnorb_azi         0.02   5e-5          0.1
smallnorb_ele         0.005  0.05          0.2
"""
)
