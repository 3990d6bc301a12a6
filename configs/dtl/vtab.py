# heekhero/DTL, DTL on VTAB: AdamW, 32 images, ViT-B_16.npz as base.
_base_ = '../_base_/tables/timm.py'

recipes = 'vtab'
method = dict(type='DTL', rank=2, beta=100.0, add_after=[6, 7, 8, 9, 10, 11])
values = dict(batch_size=32, weight_decay=0.05)
tables = dict(
    dtl="""
task                  lr      drop_path
cifar100              0.0003  0.1
caltech101            0.001   0
dtd                   0.0003  0.1
oxford_flowers102     0.008   0.2
oxford_iiit_pet       0.0003  0.1
svhn                  0.008   0.2
sun397                0.0005  0.1
patch_camelyon        0.008   0.1
eurosat               0.008   0
resisc45              0.008   0.1
diabetic_retinopathy  0.0001  0.1
clevr_count           0.001   0.2
clevr_dist            0.0005  0.2
dmlab                 0.0008  0.2
kitti                 0.008   0.1
dsprites_loc          0.01    0
dsprites_ori          0.008   0
smallnorb_azi         0.003   0.2
smallnorb_ele         0.001   0.2
"""
)
